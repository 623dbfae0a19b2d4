"""Put an index together from the scans of its shards, a shard at a time: what was scanned lies on the disk and not in memory.

Each file's row of the index holds what else was found in it (`FACTS`), so that a file that has not changed is not scanned again.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa

from ray_sassl.data import GROUP_ROWS, GROUP_SCHEMA, ROW_COLUMNS, DataConfig, ShardReader, ShardScan
from ray_sassl.data.index import BATCH_ROWS, ETAG, FACTS, FILE_SCHEMA, Index, Mapped
from ray_sassl.data.left_out import LeftOut
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.folder import FolderReader
from ray_sassl.data.sources import Sources
from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir, mark_cache
from ray_sassl.files.json_files import parse_json
from ray_sassl.process.errors import UsageError

_IN_MEMORY_BYTES = 2**26

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class OrderedMap(Protocol):
    """The function's result for each item, in the order of the items, computed by several threads or processes."""

    def __call__(self, function: Callable[[_Item], _Result], items: Sequence[_Item], /) -> Iterator[_Result]: ...


@dataclass
class Scan:
    """What was found in the files.

    Attributes:
        groups: Of `GROUP_SCHEMA`, in the order of the files.
        rows: One row per sample with what the reader needs to find it, or None if the file itself has that (Parquet).
        mapped: What the rows are mapped from, if there are many.
        facts: Of each file, as in the column `FACTS`.
        class_names: The name of each label, if the format has names.
        named_by: The first shard that names its classes.
        problems: Damage to whole files; damage to single rows is found when they are read.
        ignored: How many members of shards are not used, by file name extension.
        lost: Members of shards that are images and left out, or that were merged with members elsewhere in the shard.
    """

    groups: pa.Table
    rows: pa.Table | None = None
    mapped: Mapped | None = None
    facts: pa.Array | None = None
    class_names: tuple[str, ...] = ()
    named_by: str = ""
    problems: list[BadRow] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    lost: LeftOut = field(default_factory=LeftOut)


def scan_folder(reader: FolderReader, sources: Sources, config: DataConfig) -> Scan:
    """Of a folder whose files are the rows."""
    start = np.arange(0, len(sources.files), GROUP_ROWS)
    stop = np.minimum(start + GROUP_ROWS, len(sources.files))
    groups = pa.table([pa.array(start, pa.int32()), start, stop, stop - start], schema=GROUP_SCHEMA)
    labels, names = reader.scan(sources.files, config)
    return Scan(groups, pa.table({"label": labels}), class_names=names)


def scan_shards(reader: ShardReader, sources: Sources, config: DataConfig, each: OrderedMap, before: Index | None) -> Scan:
    """Of shards, which are scanned by `each`.

    Args:
        before: An index of the same config, from which files that have not changed are taken.

    Raises:
        UsageError: a shard is refused, or two name their classes differently.
    """
    files = sources.files
    known = _Known(before) if before is not None else None
    old = [known.find(file.entry.path, file.entry.size_bytes, file.entry.mtime_ns) if known else None for file in files]
    new = [file.entry for file, place in zip(files, old, strict=True) if place is None]
    scans = each(lambda entry: reader.scan(entry.path, entry.size_bytes, config), new)
    schema = pa.schema(list(ROW_COLUMNS[sources.format].items()))
    rows = _RowFile(schema) if len(schema) else None
    scan = Scan(GROUP_SCHEMA.empty_table())
    facts: list[str | None] = []
    groups: list[np.ndarray] = []
    for number, (file, place) in enumerate(zip(files, old, strict=True)):
        found = next(scans) if place is None or known is None else known.scan(place)
        groups.append(np.insert(found.groups, 0, number, axis=1))
        if rows is not None:
            assert found.rows is not None
            rows.add(found.rows)
        facts.append(_as_text(found))
        _add(scan, file.entry.path, found)
    columns = np.concatenate(groups).T if groups else np.empty((len(GROUP_SCHEMA), 0), np.int64)
    scan.groups = pa.table([pa.array(column, field.type) for column, field in zip(columns, GROUP_SCHEMA, strict=True)], schema=GROUP_SCHEMA)
    scan.facts = pa.array(facts, pa.string())
    if rows is not None:
        scan.rows, scan.mapped = rows.table()
    return scan


def _add(scan: Scan, path: str, found: ShardScan) -> None:
    if found.problem is not None:
        scan.problems.append(BadRow(path, -1, -1, found.problem))
    scan.ignored.update(found.ignored)
    scan.lost.take(found.lost, f"{storage.name_of(path)}: ")
    if not found.class_names or found.class_names == scan.class_names:
        return
    if scan.class_names:
        differing = sorted(set(found.class_names) ^ set(scan.class_names)) or ["their order"]
        raise UsageError(
            f"{scan.named_by} and {path} name their classes differently ({', '.join(differing[:10])}), so their labels do not agree"
        )
    scan.class_names, scan.named_by = found.class_names, path


def files_table(sources: Sources, facts: pa.Array | None) -> pa.Table:
    """The files of an index, with paths after the root."""
    files, length = sources.files, len(sources.root)
    is_plain = len(files.folders) == 1 and storage.join(files.folders[0], "x") == f"{sources.root}x"
    paths = files.paths()
    parts = []
    for first in range(0, len(files), BATCH_ROWS):
        stamps = (column[first : first + BATCH_ROWS] for column in (files.size_bytes, files.mtime_ns))
        if is_plain:  # the names themselves, without a copy
            names = files.name.slice(first, BATCH_ROWS).cast(pa.string())
        else:
            names = pa.array([path[length:] for path in islice(paths, BATCH_ROWS)], pa.string())
        parts.append(pa.table([names, *stamps], schema=FILE_SCHEMA))
    table = pa.concat_tables(parts) if parts else FILE_SCHEMA.empty_table()
    if files.etag is not None:
        table = table.append_column(ETAG, files.etag.cast(pa.string()))
    return table.append_column(FACTS, pa.nulls(len(files), pa.string()) if facts is None else facts)


class _RowFile:
    """The rows of all shards: in memory if they are few, else in a file without a name on the disk."""

    def __init__(self, schema: pa.Schema) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=_place())  # noqa: SIM115 - it lives as long as what is mapped from it
        self._writer = pa.ipc.new_stream(cast(Any, self._file), schema)
        self._held: list[pa.Table] = []
        self._num_held = 0

    def add(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._num_held += rows.num_rows
        if self._num_held >= BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held).combine_chunks())
        self._held, self._num_held = [], 0

    def table(self) -> tuple[pa.Table, Mapped | None]:
        """All rows, and what they are mapped from."""
        self._write()
        self._writer.close()
        if not self._file._rolled:  # pyright: ignore[reportAttributeAccessIssue]
            self._file.seek(0)
            return pa.ipc.open_stream(pa.py_buffer(self._file.read())).read_all(), None
        self._file.flush()
        mapped = Mapped(cast(IO[bytes], self._file))
        return pa.ipc.open_stream(mapped.buffer).read_all(), mapped


def _place() -> str | None:
    """The cache folder, which is on a disk; None: the system's folder for temporary files, which may be in memory."""
    with suppress(OSError, UsageError):
        cache_dir().mkdir(parents=True, exist_ok=True)
        mark_cache()
        return str(cache_dir())
    return None


class _Known:
    """The shards of an index by path."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._files = {path: (number, stamp) for number, (path, *stamp) in enumerate(index.known_files())}
        of_group = index.groups["file"].to_numpy()
        self._first = np.searchsorted(of_group, np.arange(index.num_files + 1))
        self._facts = index.file_column(FACTS)

    def find(self, path: str, size_bytes: int, mtime_ns: int) -> int | None:
        """The number of the file if it is known as it is now."""
        number, stamp = self._files.get(path, (None, None))
        return number if stamp == [size_bytes, mtime_ns] else None

    def scan(self, number: int) -> ShardScan:
        """What a scan of the file has found."""
        index, groups = self._index, range(self._first[number], self._first[number + 1])
        table = index.groups.slice(groups.start, len(groups))
        of_shard = np.stack([table[name].to_numpy() for name in GROUP_SCHEMA.names[1:]], axis=1)
        rows = None if index.rows is None else index.rows_between(groups.start, groups.stop)
        return _from_text(self._facts[number], of_shard, rows, index.class_names)


def _as_text(scan: ShardScan) -> str | None:
    facts = {
        "problem": scan.problem,
        "ignored": scan.ignored,
        "lost": [dict(scan.lost.counts), scan.lost.names] if scan.lost.counts else None,
        "named": bool(scan.class_names),
    }
    return json.dumps({name: value for name, value in facts.items() if value}) if any(facts.values()) else None


def _from_text(text: str | None, groups: np.ndarray, rows: pa.Table | None, class_names: tuple[str, ...]) -> ShardScan:
    facts = parse_json(text or "{}", "the index")
    counts, names = facts.get("lost", ({}, {}))
    named = class_names if facts.get("named") else ()
    return ShardScan(groups, rows, named, facts.get("problem"), facts.get("ignored", {}), LeftOut(Counter(counts), names))
