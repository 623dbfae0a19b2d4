"""Lengths of time on the command line, such as 90m or 2h."""

from __future__ import annotations

import re

from ray_sassl.process.errors import UsageError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, *, needs_unit: bool = False) -> float:
    """Seconds of `90s`, `90m`, `2h`, `1.5d`, and of `90` unless a unit is needed.

    Raises:
        UsageError: the text is not of that form, or the length is zero.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhd]?)", text.strip())
    if match is None or not float(match[1]) or (needs_unit and not match[2]):
        raise UsageError(f"{text!r} is not a length of time; write a number with s, m, h or d, such as 90m, 24h or 3d")
    return float(match[1]) * _SECONDS[match[2] or "s"]
