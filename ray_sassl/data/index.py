"""The rows of a data set: which files, which row groups, how many rows in each, and so a number for every row.

The index is a few Arrow tables: for Parquet only the row groups, for tar shards and folders one short line a sample besides (about 40
bytes, 50 MB for ImageNet). It is cached beside the run, and built anew where a file has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ray_sassl.files import storage
from ray_sassl.data import NO_LABEL, DataConfig, Format, Reader, Rows
from ray_sassl.data.readers.folder import FolderReader
from ray_sassl.data.disk_cache import read_kept
from ray_sassl.data.readers.parquet import ParquetReader
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.sources import absolute, find_sources
from ray_sassl.data.synthetic import ensure_synthetic
from ray_sassl.data.readers.webdataset import WebDatasetReader
from ray_sassl.plugins import UsageError
from ray_sassl.files.storage import Entry

READERS: dict[Format, Reader] = {"parquet": ParquetReader(), "webdataset": WebDatasetReader(), "folder": FolderReader()}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_VERSION = "1"
_SCANNED_FIELDS = ("path", "format", "image_column", "label_column", "label_extension")
_FILE_SCHEMA = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])


@dataclass(frozen=True)
class Index:
    """Every row of a data set, numbered from 0 in the order of the files (see `Sources.files`); that number is its `sample_id`.

    Attributes:
        config: What it was built from.
        format: The files' format.
        root: What all paths begin with.
        files: `path` (behind `root`), `size_bytes`, `mtime_ns` of each file.
        groups: One line a row group, see `GROUP_SCHEMA`.
        rows: One line a sample, or None for Parquet; its columns belong to the reader.
        class_names: The name of each label, where the format has names.
        problems: Damage to whole files; to be counted with the bad rows.
        ignored: What was left aside and how often, by file name extension.
        built_ns: When the index was built, in nanoseconds since 1970.
    """

    config: DataConfig
    format: Format
    root: str
    files: pa.Table
    groups: pa.Table
    rows: pa.Table | None
    class_names: tuple[str, ...] = ()
    problems: tuple[BadRow, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    built_ns: int = 0

    @cached_property
    def group_rows(self) -> np.ndarray:
        """(num_groups,) int64: rows of each row group."""
        return self.groups["num_rows"].to_numpy()

    @cached_property
    def group_first(self) -> np.ndarray:
        """(num_groups,) int64: the sample id of each row group's first row."""
        return np.cumsum(self.group_rows) - self.group_rows

    @cached_property
    def _group_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(self.groups[name].to_numpy() for name in ("file", "start", "stop"))  # pyright: ignore[reportReturnType]

    @cached_property
    def _file_first(self) -> np.ndarray:
        first = np.zeros(self.num_files, dtype=np.int64)
        first[self._group_table[0][::-1]] = self.group_first[::-1]
        return first

    @property
    def num_rows(self) -> int:
        return int(self.group_rows.sum())

    @property
    def num_groups(self) -> int:
        return len(self.group_rows)

    @property
    def num_files(self) -> int:
        return self.files.num_rows

    @cached_property
    def num_bytes(self) -> int:
        """Size of all files."""
        return int(self.files["size_bytes"].to_numpy().sum())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the files' names, sizes and times of change, and over the columns that are read."""
        names = "\0".join([_VERSION, self.format, *(repr(getattr(self.config, name)) for name in _SCANNED_FIELDS[2:]), *self._paths])
        digest = hashlib.sha256(names.encode())
        for column in ("size_bytes", "mtime_ns"):
            digest.update(self.files[column].to_numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _paths(self) -> list[str]:
        return self.files["path"].to_pylist()

    def file_path(self, file: int) -> str:
        """The path or URI of a file by its number."""
        return self.root + self.files["path"][file].as_py()

    def group_place(self, group: int) -> tuple[int, int, int]:
        """A row group's `(file, start, stop)`; what `start` and `stop` mean depends on the format, see `GROUP_SCHEMA`."""
        file, start, stop = self._group_table
        return int(file[group]), int(start[group]), int(stop[group])

    def sample_ids(self, group: int) -> np.ndarray:
        """(n,) int64: the ids of a row group's rows."""
        return np.arange(self.group_first[group], self.group_first[group] + self.group_rows[group])

    def rows_in_file(self, group: int) -> np.ndarray:
        """(n,) int64: the places of a row group's rows within their file; all 0 in a folder, where a file is a row."""
        if self.format == "folder":
            return np.zeros(self.group_rows[group], np.int64)
        return self.sample_ids(group) - self._file_first[self.group_place(group)[0]]

    def changed_files(self) -> list[str]:
        """The files that were changed, removed or added since the index was built."""
        then = dict(zip((self.root + path for path in self._paths), self._stamps(), strict=True))
        now = {entry.path: (entry.size_bytes, entry.mtime_ns) for entry in _entries(self.config)[1]}
        return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))

    def _stamps(self) -> Iterable[tuple[int, int]]:
        return zip(self.files["size_bytes"].to_pylist(), self.files["mtime_ns"].to_pylist(), strict=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a path or URI, atomically: Arrow IPC streams, one a table."""
        facts = {
            "version": _VERSION,
            "config": self.config.model_dump(mode="json"),
            "format": self.format,
            "root": self.root,
            "has_rows": self.rows is not None,
            "class_names": self.class_names,
            "problems": [asdict(problem) for problem in self.problems],
            "ignored": self.ignored,
            "built_ns": self.built_ns,
        }
        sink = io.BytesIO()
        tables = [
            self.files.replace_schema_metadata({"index": json.dumps(facts)}),
            self.groups,
            *([] if self.rows is None else [self.rows]),
        ]
        for table in tables:
            with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
        storage.write_bytes(path, sink.getbuffer())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Index:
        """The index that `save` wrote.

        Raises:
            UsageError: the file is damaged, or another version of this package wrote it.
            FileNotFoundError: there is no such file.
        """
        data = storage.read_bytes(path)
        try:
            source = pa.BufferReader(data)
            files = pa.ipc.open_stream(source).read_all()
            facts: dict[str, Any] = json.loads((files.schema.metadata or {}).get(b"index", b"{}"))
            if facts.get("version") != _VERSION:
                raise UsageError(f"{os.fspath(path)} was written by another version of this package; delete it, and it is built anew")
            groups = pa.ipc.open_stream(source).read_all()
            rows = pa.ipc.open_stream(source).read_all() if facts["has_rows"] else None
        except (pa.ArrowInvalid, OSError, json.JSONDecodeError) as error:
            raise UsageError(f"{os.fspath(path)} is no index or is damaged ({error}); delete it, and it is built anew") from error
        return Index(
            config=DataConfig(**facts["config"]),
            format=facts["format"],
            root=facts["root"],
            files=files.replace_schema_metadata(None),
            groups=groups,
            rows=rows,
            class_names=tuple(facts["class_names"]),
            problems=tuple(BadRow(**problem) for problem in facts["problems"]),
            ignored=facts["ignored"],
            built_ns=facts.get("built_ns", 0),
        )


def build_index(config: DataConfig, num_threads: int = 16, progress: Callable[[int, int], None] | None = None) -> Index:
    """The index of what `config.path` names; files are opened in parallel, and the outcome does not depend on their timing.

    Args:
        config: Where the data is.
        num_threads: Files that are opened at a time.
        progress: Called with (files done, files in all) as the work goes on.

    Raises:
        UsageError: nothing is there, or it is not what the config says; see the readers.
    """
    built_ns = time.time_ns()
    format_, entries, sources = _entries(config)

    def parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        listed = list(items)
        results: list[_Result] = []
        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(function, item) for item in listed]
            try:
                for future in futures:
                    results.append(future.result())
                    if progress is not None:
                        progress(len(results), len(listed))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return results

    scan = READERS[format_].scan(sources.files, config, parallel)
    if not (scan.groups.num_rows and sum(scan.groups["num_rows"].to_pylist())):
        raise UsageError(f"{', '.join(config.paths)} holds no rows: {len(entries):,} files, all empty")
    root = _common_root([entry.path for entry in entries])
    columns = [
        [entry.path[len(root) :] for entry in entries],
        [entry.size_bytes for entry in entries],
        [entry.mtime_ns for entry in entries],
    ]
    files = pa.table(columns, schema=_FILE_SCHEMA)
    ignored = {name: sources.ignored.get(name, 0) + scan.ignored.get(name, 0) for name in sorted(sources.ignored | scan.ignored)}
    return Index(config, format_, root, files, scan.groups, scan.rows, scan.class_names, scan.problems, ignored, built_ns)


def cached_index(
    config: DataConfig,
    cache_path: str | os.PathLike[str],
    num_threads: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """The index at `cache_path` where it still holds; otherwise it is built, and saved there.

    It no longer holds where a file was changed, removed or added, where the config names other data or columns, or where the file is
    damaged.
    """
    if storage.exists(cache_path):
        try:
            index = Index.load(cache_path)
        except UsageError:
            index = None
        if index is not None and _scanned(index.config) == _scanned(config) and not index.changed_files():
            return replace(index, config=config)
    index = build_index(config, num_threads, progress)
    index.save(cache_path)
    return index


def read_groups(index: Index, groups: Sequence[int]) -> Rows:
    """The rows of the row groups, one group after the other; what cannot be read is a `BadRow` in its place.

    Raises:
        UsageError: a file has changed since the index was built.
    """
    is_made_here = any(path.startswith("synthetic") for path in index.config.paths)
    if is_made_here:
        ensure_synthetic()  # this may be another machine than the one that built the index
    parts = []
    for group in groups:
        try:
            if not is_made_here:
                _refuse_changed(index, group)
            parts.append(read_kept(index, group, partial(READERS[index.format].read, index, group)))
        except FileNotFoundError:
            parts.append(_gone(index, group))
    return parts[0] if len(parts) == 1 else Rows.joined(parts)


def _refuse_changed(index: Index, group: int) -> None:
    """See that the row group's file is the one that was indexed. A copy on another machine's disk may be older or newer than the original, but
    not younger than the index.

    Raises:
        UsageError: it is another.
        FileNotFoundError: it is gone.
    """
    if index.format == "folder":  # a file is a row, whose bytes are what they are
        return
    file = index.group_place(group)[0]
    path = index.file_path(file)
    then = (index.files["size_bytes"][file].as_py(), index.files["mtime_ns"][file].as_py())
    now = storage.stat(path)
    if now is None:
        raise FileNotFoundError(path)
    is_touched = now.mtime_ns != then[1] and (now.mtime_ns > index.built_ns or storage.local_path(path) is None)
    if now.size_bytes != then[0] or is_touched:
        raise UsageError(f"{path} has changed since the index was built; restore it, or start a new run")


def _gone(index: Index, group: int) -> Rows:
    """A row group whose file has vanished: each of its rows is bad."""
    path = index.file_path(index.group_place(group)[0])
    sample_id, place = index.sample_ids(group), index.rows_in_file(group)
    rows: list[bytes | BadRow] = [
        BadRow(path, int(row), int(id_), "the file is gone since the index was built") for row, id_ in zip(place, sample_id, strict=True)
    ]
    labels = np.full(len(rows), NO_LABEL, np.int64)
    return Rows(sample_id, rows, labels, [f"{path}#{row}" for row in place], [path] * len(rows), place)


def all_labels(index: Index) -> np.ndarray:
    """(num_rows,) int64: the label of every row by its sample id, -1 where there is none; images are not read."""
    return READERS[index.format].labels(index)


def all_names(index: Index) -> list[str] | None:
    """The name of every row by its sample id, or None where rows have none; images are not read."""
    return READERS[index.format].names(index)


def _entries(config: DataConfig) -> tuple[Format, list[Entry], Any]:
    sources = find_sources(config)
    files = [replace(file, entry=absolute(file), folder=_absolute_folder(file.folder)) for file in sources.files]
    return sources.format, [file.entry for file in files], replace(sources, files=files)


def _absolute_folder(folder: str) -> str:
    return folder if storage.is_uri(folder) else os.path.abspath(folder)


def _common_root(paths: list[str]) -> str:
    """What all the paths begin with, up to a `/`."""
    first, last = min(paths), max(paths)
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, shared) + 1]


def _scanned(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(_SCANNED_FIELDS))
