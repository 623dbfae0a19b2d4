"""The rows of a data set: the files, their row groups, the rows in each, and so a number for every row.

The index is a few Arrow tables: for Parquet only the row groups; for tar shards and folders also one short row per sample (about 40 bytes,
50 MB for ImageNet). It is cached in the run directory, and what has changed is scanned again. Its file is not compressed and is mapped into
memory, so a process holds the pages of the rows that it is reading, whatever the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa

from ray_sassl.data import GROUP_SCHEMA, ROW_COLUMNS, DataConfig, Format, SourceFiles
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.sources import find_sources
from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir, mark_cache
from ray_sassl.files.json_files import parse_json
from ray_sassl.files.s3 import Stamp
from ray_sassl.files.storage import Entry
from ray_sassl.process.errors import UsageError

_VERSION, _COMPRESSED_VERSION = "2", "1"
_FINGERPRINT_VERSION = "1"
SCANNED_FIELDS = ("path", "format", "image_column", "label_column", "label_extension")
FILE_SCHEMA = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])
FACTS = "facts"
"""Column of the files: JSON of what else was found in a shard, see `data/building.py`; null if there is nothing."""
ETAG = "etag"
"""Column of the files: the ETags of objects of an S3 store, empty where they are not known; there is none for other data."""
BATCH_ROWS = 2**18
"""Rows per record batch of the file: few batches, so that opening it costs little, and columns far apart."""
_KEPT_INDEXES = 16
LARGE_GROUP_BYTES = 2**29

_Part = TypeVar("_Part", pa.Table, pa.ChunkedArray)


class Mapped:
    """A file's bytes, in memory as far as they are looked at."""

    def __init__(self, file: IO[bytes]) -> None:
        self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.buffer = pa.py_buffer(self._memory)

    def forget(self) -> None:
        """Drop the pages from this process's memory: an epoch looks at all of them. What is looked at again comes back from the file."""
        self._memory.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Index:
    """Every row of a data set, numbered from 0 in the order of the files (see `Sources.files`); that number is its `sample_id`.

    Attributes:
        config: The config that it was built from.
        format: The files' format.
        root: The common beginning of all paths.
        files: `path` (after `root`), `size_bytes`, `mtime_ns` of each file.
        groups: One row per row group, see `GROUP_SCHEMA`.
        rows: One row per sample, or None for Parquet; the reader defines its columns.
        class_names: The name of each label, if the format has names.
        problems: Damage to whole files, which counts as bad rows.
        ignored: How many files and members are not used, by file name extension.
        left_out: One line about parts of the data set that are left out although they may be wanted; empty if there are none.
        built_ns: When the index was built, in nanoseconds since 1970.
        mapped: The file that the tables are mapped from, if they are.
        sent_as: What is sent to other processes in place of this index: a function and the argument with which they call it to have the
            index. None if it is sent itself.
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
    left_out: str = ""
    built_ns: int = 0
    mapped: Mapped | None = field(default=None, repr=False, compare=False)
    sent_as: tuple[Callable[[Any], Index], Any] | None = field(default=None, repr=False, compare=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (self.sent_as[0], self.sent_as[1:]) if self.sent_as is not None else super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "mapped"} | {"mapped": None}

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
    def group_bytes(self) -> np.ndarray:
        """(num_groups,) int64: about how many bytes each row group of shards takes; its share of the rows, if its place is not known."""
        file, start, stop = self._group_table
        if self.format != "parquet":
            return stop - start
        of_file = np.bincount(file, self.group_rows, self.num_files)
        share = self.group_rows / np.maximum(of_file, 1)[file]
        return (share * self.files["size_bytes"].to_numpy()[file]).astype(np.int64)

    @cached_property
    def is_local(self) -> bool:
        """Whether the files are on this machine's disk, by the first of them."""
        return storage.local_path(self.file_path(0)) is not None

    @cached_property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(int(chunk.to_numpy().sum()) for chunk in self.files["size_bytes"].chunks)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names, sizes and times of change, and of the columns that are read."""
        fields = [repr(getattr(self.config, name)) for name in SCANNED_FIELDS[2:]]
        digest = hashlib.sha256("\0".join([_FINGERPRINT_VERSION, self.format, *fields]).encode())
        for names in self._name_parts():
            digest.update("".join(f"\0{name}" for name in names).encode())
        for column in ("size_bytes", "mtime_ns"):
            for chunk in self.files[column].chunks:
                digest.update(chunk.to_numpy())
        self._forget()
        return digest.hexdigest()

    def _forget(self) -> None:
        if self.mapped is not None:
            self.mapped.forget()

    def _name_parts(self) -> Iterator[list[str]]:
        for first in range(0, self.num_files, BATCH_ROWS):
            yield self._strings(self.files["path"].slice(first, BATCH_ROWS))

    def _strings(self, column: pa.ChunkedArray) -> list[str]:
        return self._whole(column).to_pylist()

    def _whole(self, part: _Part) -> _Part:
        """The same part of a table, once it is seen to be whole: a mapped file is not looked through before, and Arrow believes offsets.

        Raises:
            UsageError: it is damaged.
        """
        try:
            part.validate(full=True)
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"the index of {', '.join(self.config.paths)} is damaged ({error}); delete it to have it built again"
            ) from error
        return part

    def file_names(self) -> Iterator[str]:
        """The files' paths after `root`."""
        for names in self._name_parts():
            yield from names
            self._forget()

    def file_path(self, file: int) -> str:
        """The path or URI of a file by its number."""
        return self.file_paths(file, file + 1)[0]

    def file_paths(self, start: int, stop: int) -> list[str]:
        """The paths or URIs of some files by their numbers."""
        names = self._strings(self.files["path"].slice(start, stop - start))
        self._forget()
        return [self.root + name for name in names]

    def stamp(self, file: int) -> Stamp:
        """What a file must still be."""
        etag = self._strings(self.files[ETAG].slice(file, 1))[0] if ETAG in self.files.column_names else ""
        return Stamp(*self.file_stamp(file), etag or "")

    def file_stamp(self, file: int) -> tuple[int, int]:
        """A file's size in bytes and time of change in nanoseconds."""
        return self.files["size_bytes"][file].as_py(), self.files["mtime_ns"][file].as_py()

    def file_column(self, name: str) -> list[Any]:
        """A column of the files."""
        return self._strings(self.files[name])

    def rows_of(self, group: int, part: slice = slice(None)) -> pa.Table:
        """What the reader knows of a row group's samples, or of a part of them."""
        places = range(self.group_rows[group])[part]
        return self._row_run(int(self.group_first[group]) + places.start, len(places))

    def rows_between(self, first: int, stop: int) -> pa.Table:
        """What the reader knows of the samples of some row groups."""
        return self._row_run(int(self.group_first[first]) if first < stop else 0, int(self.group_rows[first:stop].sum()))

    def _row_run(self, first: int, number: int) -> pa.Table:
        assert self.rows is not None
        rows = self._whole(self.rows.slice(first, number))
        self._forget()
        return rows

    def row_column(self, name: str) -> pa.ChunkedArray:
        """What the reader knows of every sample."""
        assert self.rows is not None
        return self._whole(self.rows[name])

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
        return self.changes(find_sources(self.config, self.pictures()).files)

    def changes(self, files: SourceFiles) -> list[str]:
        """The paths at which one of these files, or of those of the index, is not as the other."""
        if len(files) == self.num_files and all(
            ours == (path, *stamp)
            for ours, path, *stamp in zip(self.known_files(), files.paths(), files.size_bytes, files.mtime_ns, strict=True)
        ):
            return []
        then = {path: (size, time) for path, size, time in self.known_files()}
        now = {path: (int(size), int(time)) for path, size, time in zip(files.paths(), files.size_bytes, files.mtime_ns, strict=True)}
        return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))

    def known_files(self) -> Iterator[tuple[str, int, int]]:
        """Path, size and time of change of each file."""
        for first in range(0, self.num_files, BATCH_ROWS):
            part = self.files.slice(first, BATCH_ROWS)
            columns = (part["size_bytes"].to_pylist(), part["mtime_ns"].to_pylist())
            yield from ((self.root + name, *stamp) for name, *stamp in zip(self._strings(part["path"]), *columns, strict=True))
        self._forget()

    def pictures(self) -> set[Entry]:
        """The files that are pictures of a kind that we draw too, and are known not to be ours."""
        return {Entry(path, True, *stamp) for path, *stamp in self.known_files() if path.lower().endswith(".png")}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a path or URI, atomically: one Arrow IPC stream per table."""
        facts = {
            "version": _VERSION,
            "config": self.config.model_dump(mode="json"),
            "format": self.format,
            "root": self.root,
            "has_rows": self.rows is not None,
            "class_names": self.class_names,
            "problems": [asdict(problem) for problem in self.problems],
            "ignored": self.ignored,
            "left_out": self.left_out,
            "built_ns": self.built_ns,
        }
        tables = [
            self.files.replace_schema_metadata({"index": json.dumps(facts)}),
            self.groups,
            *([] if self.rows is None else [self.rows]),
        ]
        with storage.open_atomic(path) as sink:
            for table in tables:
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    for first in range(0, table.num_rows, BATCH_ROWS):
                        writer.write_table(table.slice(first, BATCH_ROWS).combine_chunks())
                        if self.mapped is not None:
                            self.mapped.forget()

    def at(self, path: str) -> Index:
        """The same index, of which other processes get only the path of the file to which it was saved, and open that once each."""
        return replace(self, sent_as=(_shared, path))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Index:
        """The index that `save` wrote, mapped from this machine's disk; one of an object store is copied to the cache folder first.

        Raises:
            UsageError: the file is damaged, or another version of this package wrote it.
            FileNotFoundError: there is no such file.
        """
        try:
            local = storage.local_path(path) or _copy_of(os.fspath(path))
            if not local.is_file() and local.exists():
                raise ValueError("it is not a file")
            with local.open("rb") as file:
                return _decoded(Mapped(file))
        except _OtherVersionError as error:
            raise UsageError(
                f"{os.fspath(path)} was written by another version of this package; delete it to have it built again"
            ) from error
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{os.fspath(path)} is not an index or is damaged ({error}); delete it to have it built again") from error

    @property
    def has_facts(self) -> bool:
        """Whether it says of each file what a scan of it found; one that an older version of this package wrote does not."""
        return FACTS in self.files.column_names


@lru_cache(maxsize=4)
def _shared(path: str) -> Index:
    return Index.load(path).at(path)


class _OtherVersionError(ValueError):
    """The index is whole, and of another version."""


def large_groups(index: Index) -> str | None:
    """That a few images cannot be read without very many others, and what to do; None if that is not so."""
    if index.format == "folder":
        return None
    is_large = index.group_bytes > LARGE_GROUP_BYTES
    if not is_large.any():
        return None
    worst = int(index.group_bytes.argmax())
    return (
        f"{int(is_large.sum()):,} of {index.num_groups:,} row groups are larger than {LARGE_GROUP_BYTES >> 20} MB, the largest about "
        f"{index.group_bytes[worst] >> 20:,} MB ({index.group_rows[worst]:,} rows). A group is read as a whole, so each process that reads "
        f"needs that much memory; `ray-sassl data convert SRC DST --format parquet --group-rows 256` makes small ones."
    )


def _copy_of(uri: str) -> Path:
    """A copy of the object in the cache folder, of which the newest few are kept."""
    entry = storage.stat(uri)
    if entry is None:
        raise FileNotFoundError(uri)
    name = hashlib.sha256(f"{uri}\0{entry.size_bytes}\0{entry.mtime_ns}".encode()).hexdigest()[:16]
    copy = indexes_dir() / f"{name}.arrow"
    if copy.exists():
        keep_newest(copy)
        return copy
    aside = copy.parent / f".{name}.{uuid.uuid4().hex[:12]}.part"
    filesystem, inner = storage.filesystem_of(uri)

    def fetch() -> None:
        with filesystem.open_input_stream(inner, compression=None) as stream, aside.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**23)

    try:
        storage.retried(uri, fetch)
        os.replace(aside, copy)
    finally:
        aside.unlink(missing_ok=True)
    keep_newest(copy)
    return copy


def indexes_dir() -> Path:
    """The folder of indexes in the cache folder."""
    folder = cache_dir() / "indexes"
    folder.mkdir(parents=True, exist_ok=True)
    mark_cache()
    return folder


def keep_newest(path: Path) -> None:
    """Note that this index of the folder is used, and delete all but the few that were used last."""
    with suppress(OSError):  # another process deletes too, or the folder can only be read
        os.utime(path)
        for old in sorted(path.parent.glob("*.arrow"), key=lambda file: file.stat().st_mtime)[:-_KEPT_INDEXES]:
            old.unlink()  # who has mapped it keeps it until the end


def _decoded(mapped: Mapped) -> Index:
    source = pa.BufferReader(mapped.buffer)
    files = pa.ipc.open_stream(source).read_all()
    facts: dict[str, Any] = parse_json((files.schema.metadata or {}).get(b"index", b"{}"), "its header")
    if facts.get("version") not in (_VERSION, _COMPRESSED_VERSION):
        raise _OtherVersionError(str(facts.get("version")))
    groups = pa.ipc.open_stream(source).read_all()
    rows = pa.ipc.open_stream(source).read_all() if facts["has_rows"] else None
    files = files.replace_schema_metadata(None)
    _check_tables(facts["format"], files, groups, rows)
    return Index(
        config=DataConfig(**facts["config"]),
        format=facts["format"],
        root="" + facts["root"],
        files=files,
        groups=groups,
        rows=rows,
        class_names=tuple("" + name for name in facts["class_names"]),
        problems=tuple(BadRow(**problem) for problem in facts["problems"]),
        ignored={name: int(count) for name, count in facts["ignored"].items()},
        left_out="" + facts.get("left_out", ""),
        built_ns=int(facts.get("built_ns", 0)),
        mapped=mapped if facts["version"] == _VERSION else None,  # the tables of an older one were decompressed
    )


def _check_tables(format_: str, files: pa.Table, groups: pa.Table, rows: pa.Table | None) -> None:
    """See that the tables are whole and agree with each other, before anything is looked up or reserved by what they say.

    Raises:
        ValueError: they are not.
    """
    groups.validate(full=True)  # Arrow's own readers believe lengths and offsets
    for table in (files, *([] if rows is None else [rows])):
        table.validate()  # the strings are looked through where they are read
    wanted = [(files, FILE_SCHEMA), (groups, GROUP_SCHEMA)] + ([] if rows is None else [(rows, pa.schema(ROW_COLUMNS[format_].items()))])
    if not all(_has_columns(table, schema) for table, schema in wanted):
        raise ValueError("its tables have other columns")
    file, start, stop, num_rows = (groups[name].to_numpy() for name in GROUP_SCHEMA.names)
    num_files = files.num_rows
    if len(file) and (file.min() < 0 or file.max() >= num_files or start.min() < 0 or (stop < start).any() or num_rows.min() < 0):
        raise ValueError("its row groups are nowhere in its files")
    if format_ == "folder":
        most_rows = end = num_files
    else:
        end = files["size_bytes"].to_numpy()[file]
        most_rows = end.clip(0, 2**50) * 8 + 1024
    if (num_rows > most_rows).any():
        raise ValueError("its row groups have more rows than their files have room for")
    if format_ != "parquet" and (stop > end).any():
        raise ValueError("its row groups lie behind the ends of their files")
    if (rows is None) != (not ROW_COLUMNS[format_]) or (rows is not None and rows.num_rows != num_rows.sum()):
        raise ValueError("its samples are not those of its row groups")


def _has_columns(table: pa.Table, schema: pa.Schema) -> bool:
    """Whether the table has these columns, without nulls; it may have others."""
    there = {field.name: field.type for field in table.schema}
    return all(there.get(field.name) == field.type and not table[field.name].null_count for field in schema)
