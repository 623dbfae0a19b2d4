"""The command line as a person calls it, in this process."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence

import pytest

from ray_sassl.cli import main


def call_main(words: Sequence[str], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> tuple[object, str]:
    """The exit code and what was printed, on both streams; an error that would be a traceback is raised.

    Args:
        encoding: Of the terminal, which refuses what it does not have, as Python opens it.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n") for _ in range(2)]
    handlers, hook = logging.getLogger().handlers[:], sys.excepthook
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["ray-sassl", *words])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        logging.getLogger().handlers = []
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            logging.getLogger().handlers, sys.excepthook = handlers, hook
    output = ""
    for stream in streams:
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        output += stream.buffer.getvalue().decode(encoding)
    return ended.value.code, output
