"""Row groups of an object store, kept on this machine's disk: trials of a search, later epochs and later runs read them there.

A group is a file `row-groups/DATA/NUMBER.arrow` in the cache folder, where DATA names the files with their sizes and times of change, so
that what was kept of other files is never taken for them. All processes of a machine share the folder. Once it is full, the data sets that
nobody has read for an hour make room, and then what is not there yet stays in the object store: as every epoch reads every group once,
giving up some of them for others would gain nothing.
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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_sassl.data import Rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

log = logging.getLogger(__name__)

_UNUSED_S = 3600.0
_LOOK_EVERY_BYTES = 2**28
"""After so much has been kept, a process looks again at what all have."""
_SCHEMA = pa.schema(
    [
        ("encoded", pa.large_binary()),
        ("label", pa.int64()),
        ("key", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),
    ]
)


def read_cached(index: Index, group: int, read: Callable[[], Rows]) -> Rows:
    """The rows of a row group: those that are kept on this machine, or else what `read` returns, which is then kept if `data.cache_gb`
    allows it."""
    limit_bytes = int(index.config.cache_gb * 1e9)
    if not limit_bytes or storage.local_path(index.file_path(0)) is not None:
        return read()
    kept = _kept(str(cache_dir() / "row-groups"), limit_bytes)
    path = Path(_name(index.root, index.fingerprint), f"{group}.arrow")
    rows = kept.read(path, index.sample_ids(group))
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
    """The folder, as one process uses it.

    Args:
        folder: Made where it is missing.
        limit_bytes: Of all files in it together; several processes at once may go a little beyond it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._free_bytes = self._until_look = 0

    def read(self, path: Path, sample_id: np.ndarray) -> Rows | None:
        """The group that is kept at the path, with these ids, or None where none is, or a damaged one."""
        file = self._folder / path
        try:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, pa.ArrowInvalid):
            table = None
        if table is None or table.schema != _SCHEMA or table.num_rows != len(sample_id):
            with contextlib.suppress(OSError):  # another process was quicker, or the folder may only be read
                file.unlink()
            return None
        _touch(file.parent)
        encoded, label, key, paths, row = (table[name] for name in _SCHEMA.names)
        return Rows(sample_id, encoded.to_pylist(), label.to_numpy(), key.to_pylist(), paths.to_pylist(), row.to_numpy())

    def keep(self, path: Path, rows: Rows) -> None:
        """Write the group to the path, if it is whole and there is room for it. A disk that refuses it is no error: it will be read where
        it came from, as will a group with bad rows, which may be good again."""
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
        if self._until_look <= 0:
            self._free_bytes = self._limit_bytes - self._used_bytes(own)
            self._until_look = _LOOK_EVERY_BYTES
        self._until_look -= num_bytes
        self._free_bytes -= num_bytes
        return self._free_bytes >= 0

    def _used_bytes(self, own: str) -> int:
        """Of all data sets, after those that nobody reads any more have made room for the own one."""
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
    except OSError:  # another process makes room or renames a file, or it is not a folder of ours
        return 0


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _touch(folder: Path) -> None:
    """Say that the data set is in use, now and then. An error here must not be taken for one of the data's own files."""
    if time.time() - _last_use(folder) > 60:
        with contextlib.suppress(OSError):
            os.utime(folder)
