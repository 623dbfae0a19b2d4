"""Marks on files that this package wrote, so that contact sheets, runs and copies in a folder of images are never read as images of
a data set.

A folder with nothing but our output has a hidden file `.ray-sassl`. A single picture (PNG) has a text chunk after its header.
A single file of another kind, and every single file on an object store, where looking into each picture would take too long, has a hidden
file `.NAME.ray-sassl` next to it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable
from contextlib import suppress

from ray_sassl.files import storage

MARKER = ".ray-sassl"
_NOTE = "ray-sassl wrote this {what}. Commands that read folders of images leave it out; delete this file if they should not.\n"
_SIGNATURE_AND_HEADER_BYTES = 8 + 25
_TEXT = b"tEXt" + b"Software\0ray-sassl"
_CHUNK = (len(_TEXT) - 4).to_bytes(4, "big") + _TEXT + zlib.crc32(_TEXT).to_bytes(4, "big")


def mark_folder(folder: str, known: Collection[str] | None = ()) -> bool:
    """Mark the folder as ours, if it holds nothing else; returns whether it is marked now.

    Args:
        folder: A path or URI of a folder that is about to be written to; it is made.
        known: Names of what we put there ourselves; None: all that is there.
    """
    names = {storage.name_of(entry.path) for entry in storage.list_dir(folder)}
    if MARKER in names:
        return True
    if known is not None and any(not name.startswith(".") and name not in known for name in names):
        return False
    storage.write_text(storage.join(folder, MARKER), _NOTE.format(what="folder"))
    return True


def write_picture(path: str | os.PathLike[str], png: bytes) -> None:
    """Put a PNG that we have drawn at the path, with its mark."""
    storage.write_bytes(path, marked(png))
    if storage.local_path(path) is None:
        mark_file(path)


def marked(png: bytes) -> bytes:
    """The picture with our mark."""
    return png[:_SIGNATURE_AND_HEADER_BYTES] + _CHUNK + png[_SIGNATURE_AND_HEADER_BYTES:]


def mark_file(path: str | os.PathLike[str]) -> None:
    """Mark a single file that we wrote, by a file next to it."""
    storage.write_text(storage.join(storage.parent(path), _mark_of(storage.name_of(path))), _NOTE.format(what="file"))


def own_folders(names: Iterable[str]) -> tuple[str, ...]:
    """The marked folders among the names of all files below a folder, each with a `/` at its end; the folder itself is none of them."""
    ending = f"/{MARKER}"
    return tuple(sorted(name.removesuffix(MARKER) for name in names if name.endswith(ending)))


def marked_files(names: Iterable[str]) -> set[str]:
    """The files that another file next to them marks as ours, among the names of all files below a folder."""
    marked = set()
    for name in names:
        folder, slash, base = name.rpartition("/")
        if base != MARKER and base.startswith(".") and base.endswith(MARKER):
            marked.add(folder + slash + base[1 : -len(MARKER)])
    return marked


def is_own_picture(path: str) -> bool:
    """Whether the local file is a PNG with our mark."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        return file.read(_SIGNATURE_AND_HEADER_BYTES + len(_CHUNK)).endswith(_CHUNK)
    return False


def _mark_of(name: str) -> str:
    return f".{name}{MARKER}"
