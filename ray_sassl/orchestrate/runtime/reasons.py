"""The reason of an error, extracted from Ray's error, which wraps it once for every process that it passes through."""

from __future__ import annotations

import re

from ray_sassl.process.secrets import redacted

_OURS = re.compile(r"^ray_sassl\.[\w.]+: ")
_GUESSES = " Some common causes include:"
"""The beginning of Ray's paragraph about a dead process, whose first guess is memory."""


def reason_of(error: BaseException | str | None) -> str:
    """The innermost message, in one line: the whole message of our own errors, which is written for the user, otherwise the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return repr(error)
    begins = next((place for place in reversed(range(len(lines))) if _OURS.match(lines[place])), len(lines) - 1)
    said, is_guess, _ = _OURS.sub("", " ".join(lines[begins:])).partition(_GUESSES)
    return redacted(said) + (" Memory may have run out." if is_guess else "")
