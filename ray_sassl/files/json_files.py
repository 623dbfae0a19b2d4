"""JSON documents and JSON lines, read from files that may be truncated by a crash or written by others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

MAX_BYTES = 1 << 28
"""Maximum size of a JSON document; our largest ones have a few megabytes."""
MAX_LINES_BYTES = 1 << 31
"""Maximum size of a file of JSON lines: the values of ten million steps."""


LARGEST_NUMBER = 1e100
"""Of a number that is read back as one; beyond it, sums, squares and the axes of figures overflow."""


@dataclass(frozen=True)
class JsonLines:
    """The lines of a file that are JSON objects, and the number of those that are not."""

    objects: list[dict[str, Any]]
    num_damaged: int


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text.

    Args:
        source: Name of the text, for messages.

    Raises:
        UsageError: it is not JSON, is nested too deeply, or has a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is damaged ({error})") from error


def read_json(path: str) -> dict[str, Any] | None:
    """The object in a file, or None if there is no file or it contains something else.

    Raises:
        UsageError: it is not JSON, or too large.
    """
    if not storage.exists(path):
        return None
    tree = parse_json(storage.read_bytes(path, MAX_BYTES), path)
    return tree if isinstance(tree, dict) else None


def read_json_lines(path: str) -> JsonLines:
    """The objects of a file of JSON lines; none if there is no file. Only `\\n` ends a line.

    Raises:
        UsageError: it is too large, or is not a file.
    """
    if not storage.exists(path):
        return JsonLines([], 0)
    objects: list[dict[str, Any]] = []
    num_damaged = 0
    for line in storage.read_bytes(path, MAX_LINES_BYTES).split(b"\n"):
        if not line.strip():
            continue
        try:
            value = parse_json(line, path)
        except UsageError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            num_damaged += 1
    return JsonLines(objects, num_damaged)


def as_number(value: Any) -> float | None:
    """The value where it is a finite number of sensible size, else None; true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -LARGEST_NUMBER <= value <= LARGEST_NUMBER else None


def as_mapping(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_texts(value: Any) -> list[str]:
    """The texts of a list; nothing where the value is not a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
