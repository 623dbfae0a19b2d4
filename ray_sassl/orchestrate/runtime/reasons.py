"""What went wrong, out of what Ray makes of an error: it wraps one once for every process that it passes through."""

from __future__ import annotations

import re

from ray_sassl.secrets import redacted

_OURS = re.compile(r"^ray_sassl\.[\w.]+: ")
_GUESSES = " Some common causes include:"
"""Begins a paragraph of Ray's about a dead process, whose first guess is memory."""


def reason_of(error: BaseException | str | None) -> str:
    """The innermost message, in one line: all of it where it is of an error of ours, whose words are for the user, and the last line
    otherwise."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    begins = next((place for place in reversed(range(len(lines))) if _OURS.match(lines[place])), len(lines) - 1)
    said, is_guess, _ = _OURS.sub("", " ".join(lines[begins:])).partition(_GUESSES)
    return redacted(said) + (" Memory may have run out." if is_guess else "")
