"""The error that a user can mend."""

from __future__ import annotations

from typing import Any

from ray_sassl.process.secrets import redacted


class UsageError(ValueError):
    """An error that the user can mend; the command line shows its message without a traceback. Secrets in URIs are not in its text."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*(redacted(part) if isinstance(part, str) else part for part in parts))
