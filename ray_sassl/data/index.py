"""The rows of a data set: the files, their row groups, the rows in each, and so a number for every row.

The index is a few Arrow tables: for Parquet only the row groups; for tar shards and folders also one short row per sample (about 40 bytes,
50 MB for ImageNet). It is cached in the run directory, and rebuilt if a file has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ray_sassl.data import GROUP_SCHEMA, ROW_COLUMNS, DataConfig, Format
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.sources import resolve
from ray_sassl.files import storage
from ray_sassl.files.storage import Entry
from ray_sassl.process.errors import UsageError

_VERSION = "1"
SCANNED_FIELDS = ("path", "format", "image_column", "label_column", "label_extension")
FILE_SCHEMA = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])


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
        """sha256 of the files' names, sizes and times of change, and of the columns that are read."""
        names = "\0".join([_VERSION, self.format, *(repr(getattr(self.config, name)) for name in SCANNED_FIELDS[2:]), *self._paths])
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
        known = {Entry(path, True, *stamp) for path, stamp in then.items()}
        now = {entry.path: (entry.size_bytes, entry.mtime_ns) for entry in resolve(self.config, known)[1]}
        return sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))

    def _stamps(self) -> Iterable[tuple[int, int]]:
        return zip(self.files["size_bytes"].to_pylist(), self.files["mtime_ns"].to_pylist(), strict=True)

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
            return _decoded(data)
        except _OtherVersionError as error:
            raise UsageError(
                f"{os.fspath(path)} was written by another version of this package; delete it to have it built again"
            ) from error
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{os.fspath(path)} is not an index or is damaged ({error}); delete it to have it built again") from error


class _OtherVersionError(ValueError):
    """The index is whole, and of another version."""


def _decoded(data: bytes) -> Index:
    source = pa.BufferReader(data)
    files = pa.ipc.open_stream(source).read_all()
    facts: dict[str, Any] = json.loads((files.schema.metadata or {}).get(b"index", b"{}"))
    if facts.get("version") != _VERSION:
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
    )


def _check_tables(format_: str, files: pa.Table, groups: pa.Table, rows: pa.Table | None) -> None:
    """See that the tables are whole and agree with each other, before anything is looked up or reserved by what they say.

    Raises:
        ValueError: they are not.
    """
    tables = [files, groups, *([] if rows is None else [rows])]
    for table in tables:
        table.validate(full=True)  # Arrow's own readers believe lengths and offsets
    wanted = [(files, FILE_SCHEMA), (groups, GROUP_SCHEMA)] + ([] if rows is None else [(rows, pa.schema(ROW_COLUMNS[format_].items()))])
    if not all(_has_columns(table, schema) for table, schema in wanted):
        raise ValueError("its tables have other columns")
    file, start, stop, num_rows = (groups[name].to_numpy() for name in GROUP_SCHEMA.names)
    size_bytes = files["size_bytes"].to_numpy()
    if len(file) and (file.min() < 0 or file.max() >= len(size_bytes) or start.min() < 0 or (stop < start).any() or num_rows.min() < 0):
        raise ValueError("its row groups are nowhere in its files")
    if (num_rows > (len(size_bytes) if format_ == "folder" else size_bytes.clip(0, 2**50)[file] * 8 + 1024)).any():
        raise ValueError("its row groups have more rows than their files have room for")
    if format_ != "parquet" and (stop > (len(size_bytes) if format_ == "folder" else size_bytes[file])).any():
        raise ValueError("its row groups lie behind the ends of their files")
    if (rows is None) != (not ROW_COLUMNS[format_]) or (rows is not None and rows.num_rows != num_rows.sum()):
        raise ValueError("its samples are not those of its row groups")


def _has_columns(table: pa.Table, schema: pa.Schema) -> bool:
    """Whether the table has these columns, without nulls; it may have others."""
    there = {field.name: field.type for field in table.schema}
    return all(there.get(field.name) == field.type and not table[field.name].null_count for field in schema)
