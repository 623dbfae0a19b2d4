"""Row groups of an object store, kept on this machine's disk for trials of a search, later epochs and later runs.

A group is a file `row-groups/DATA/NUMBER.arrow` in the cache folder, and a part of one `NUMBER.FIRST-END.arrow`. DATA is a hash of the
files' names, sizes and times of change, so that groups of other files are never used instead. All processes of a machine share the folder.
When it is full, data sets that nobody has read for an hour are removed. If it is still full, further groups stay in the object store: since
every epoch reads every group once, replacing some of them by others would gain nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_sassl.data import Rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files.cache import cache_dir

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

log = logging.getLogger(__name__)

_UNUSED_S = 3600.0
_LOOK_EVERY_BYTES = 2**28
"""After writing so much, a process measures the whole folder again."""
_SCHEMA = pa.schema(
    [
        ("encoded", pa.large_binary()),
        ("label", pa.int64()),
        ("key", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),
    ]
)


def read_cached(index: Index, group: int, part: slice, read: Callable[[], Rows]) -> Rows:
    """The rows of a row group, or of a part of it, from this machine's disk, or else from `read`; the latter are kept on disk if
    `data.cache_gb` allows it."""
    limit_bytes = int(index.config.cache_gb * 1e9)
    if not limit_bytes or index.is_local:
        return read()
    kept = _kept(str(cache_dir() / "row-groups"), limit_bytes)
    name = f"{group}.arrow" if part == slice(None) else f"{group}.{part.start}-{part.stop}.arrow"
    path = Path(_name(index.root, index.fingerprint), name)
    rows = kept.read(path, index.sample_ids(group)[part])
    if rows is None:
        rows = read()
        kept.keep(path, rows)
    return rows


@lru_cache(maxsize=8)
def _kept(folder: str, limit_bytes: int) -> DiskCache:
    return DiskCache(Path(folder), limit_bytes)


@lru_cache(maxsize=64)
def _name(root: str, fingerprint: str) -> str:
    return hashlib.sha256(f"{root}\0{fingerprint}".encode()).hexdigest()[:16]


class DiskCache:
    """One process's access to the folder.

    Args:
        folder: The folder, which is created if needed.
        limit_bytes: Largest size of all files in it; several processes at once may exceed it a little.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._free_bytes = self._until_look = 0
        self._lock = Lock()

    def read(self, path: Path, sample_id: np.ndarray) -> Rows | None:
        """The group at the path, with these ids, or None if it is missing or damaged."""
        file = self._folder / path
        try:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, pa.ArrowInvalid):
            table = None
        if table is None or table.schema != _SCHEMA or table.num_rows != len(sample_id):
            with contextlib.suppress(OSError):  # another process was faster, or the folder is read-only
                file.unlink()
            return None
        _touch(file.parent)
        encoded, label, key, paths, row = (table[name] for name in _SCHEMA.names)
        return Rows(sample_id, encoded.to_pylist(), label.to_numpy(), key.to_pylist(), paths.to_pylist(), row.to_numpy())

    def keep(self, path: Path, rows: Rows) -> None:
        """Write the group to the path if it has no bad rows and there is room for it. An error of the disk is logged, and the group is read
        from its source each time. So is a group with bad rows, which may be good later."""
        if any(isinstance(image, BadRow) for image in rows.encoded):
            return
        table = pa.table([rows.encoded, rows.label, rows.key, rows.path, rows.row], schema=_SCHEMA)
        if not self._has_room(table.nbytes, path.parent.name):
            return
        file = self._folder / path
        aside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                writer.write_table(table)
            os.replace(aside, file)
        except OSError as error:
            log.warning("%s cannot be kept on this machine's disk (%s); it is read from the object store each time", rows.path[0], error)
            with contextlib.suppress(OSError):
                aside.unlink()
            self._free_bytes, self._until_look = 0, _LOOK_EVERY_BYTES

    def _has_room(self, num_bytes: int, own: str) -> bool:
        with self._lock:  # threads read groups side by side
            if self._until_look <= 0:
                self._free_bytes = self._limit_bytes - self._used_bytes(own)
                self._until_look = _LOOK_EVERY_BYTES
            self._until_look -= num_bytes
            self._free_bytes -= num_bytes
            return self._free_bytes >= 0

    def _used_bytes(self, own: str) -> int:
        """Size of all data sets, after removing those that are no longer read if the own one needs room."""
        used = {folder: _size_bytes(folder) for folder in self._folder.iterdir()} if self._folder.is_dir() else {}
        for folder in sorted(used, key=_last_use):
            if sum(used.values()) < self._limit_bytes or folder.name == own or time.time() - _last_use(folder) < _UNUSED_S:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            used[folder] = 0
        return sum(used.values())


def _size_bytes(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:  # another process removed or renamed a file, or it is not one of our folders
        return 0


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _touch(folder: Path) -> None:
    """Mark the data set as in use, now and then. An error here must not look like an error of the data set's own files."""
    if time.time() - _last_use(folder) > 60:
        with contextlib.suppress(OSError):
            os.utime(folder)
