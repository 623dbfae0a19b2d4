"""The client of the Hugging Face hub, which timm and `datasets` fetch with."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_OF_A_TRY = re.compile(r"thrown while requesting|^Retrying in ")


class _TriesOnce(logging.Handler):
    """Passes on what the client warns of, but says only once that the hub does not answer."""

    def __init__(self, what: str) -> None:
        super().__init__(logging.WARNING)
        self._what, self._is_told = what, False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _OF_A_TRY.search(text) is None:
            log.log(record.levelno, "%s", text)
        elif not self._is_told:
            self._is_told = True
            log.warning("Fetching %s: the hub does not answer, which is tried again for up to a minute. %s", self._what, text)


@contextmanager
def fetching(what: str) -> Iterator[None]:
    """Within, one line stands for the client's warnings of its tries, of which it prints two for each, and each one twice."""
    import huggingface_hub.utils.logging  # noqa: F401 - adds its handler

    client = logging.getLogger("huggingface_hub")
    handlers, propagates = client.handlers, client.propagate
    client.handlers, client.propagate = [_TriesOnce(what)], False
    try:
        yield
    finally:
        client.handlers, client.propagate = handlers, propagates
