"""Pictures that lie in a run or study directory, for pages."""

from __future__ import annotations

from ray_sassl.files import storage
from ray_sassl.files.paths import check_inside
from ray_sassl.process.errors import UsageError

MAX_BYTES = 64 * 2**20
"""Of a picture that is put into a page; the largest of ours has a few megabytes."""
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


def picture_kind(content: bytes) -> str | None:
    """`png` or `jpeg` as the first bytes say, or None for anything else."""
    return next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)


def read_picture(path: str, folder: str) -> bytes | None:
    """The PNG or JPEG at the path, or None where no file is.

    Args:
        folder: What the path has to lie in, once links are resolved.

    Raises:
        UsageError: it lies elsewhere, is too large, or is something else by its content.
    """
    entry = storage.stat(path)
    if entry is None:
        return None
    check_inside(path, folder)
    content = storage.read_bytes(path, MAX_BYTES)
    if picture_kind(content) is None:
        raise UsageError(f"{path} is not shown: it is neither a PNG nor a JPEG")
    return content
