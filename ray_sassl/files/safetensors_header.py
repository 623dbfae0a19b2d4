"""The header of a safetensors file: 8 bytes with its length, then JSON that lists the tensors, with free text under `__metadata__`."""

from __future__ import annotations

from typing import Any, NamedTuple

from ray_sassl.files.json_files import parse_json
from ray_sassl.process.errors import UsageError

MAX_BYTES = 100_000_000
"""Maximum size of a header; the safetensors package has the same limit."""


class Header(NamedTuple):
    """The header of a safetensors file.

    Attributes:
        entries: The JSON object: type, shape and offsets of each tensor by name, and `__metadata__` if the file has it.
        end: Where the tensors' bytes begin; offsets count from there.
    """

    entries: dict[str, Any]
    end: int

    @property
    def metadata(self) -> dict[str, str]:
        """The free text of the file, by its keys."""
        return self.entries.get("__metadata__", {})


def read_header(content: bytes, source: str) -> Header:
    """The header of a file, without reading any tensor.

    Args:
        content: The file, or its beginning.
        source: Name of the file, for messages.

    Raises:
        UsageError: this is not a safetensors file, or its header is damaged.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or end > min(len(content), 8 + MAX_BYTES):
        raise UsageError(f"{source} is damaged, or is not a safetensors file: its header would end at byte {end} of {len(content)}")
    entries = parse_json(content[8:end], source)
    texts = entries.get("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise UsageError(f"{source} is damaged, or is not a safetensors file: its header is not an object whose metadata are texts")
    return Header(entries, end)
