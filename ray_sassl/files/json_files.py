"""JSON documents and JSON lines, read back from files that a crash may have torn."""

from __future__ import annotations

import json
from typing import Any

from ray_sassl.files import storage
from ray_sassl.plugins import UsageError


def read_json(path: str) -> dict[str, Any] | None:
    """The object in a file, or None where there is no file or it holds something else.

    Raises:
        UsageError: it is not JSON.
    """
    if not storage.exists(path):
        return None
    try:
        tree = json.loads(storage.read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is damaged ({error})") from error
    return tree if isinstance(tree, dict) else None


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a file, without a line that a crash has torn."""
    if not storage.exists(path):
        return []
    lines = []
    for text in storage.read_text(path).splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
