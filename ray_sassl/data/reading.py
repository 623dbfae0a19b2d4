"""Build an index from paths and read rows with it: chooses the reader, opens files in parallel, and checks that files are still those that
were indexed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ray_sassl.data import NO_LABEL, SYNTHETIC, DataConfig, Rows, ShardReader
from ray_sassl.data.ahead import ahead
from ray_sassl.data.building import OrderedMap, files_table, scan_folder, scan_shards
from ray_sassl.data.contents import with_digests
from ray_sassl.data.disk_cache import read_cached
from ray_sassl.data.hub import ensure_hub, is_hub
from ray_sassl.data.index import SCANNED_FIELDS, Index, indexes_dir, keep_newest
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.folder import FolderReader
from ray_sassl.data.readers.parquet import ParquetReader
from ray_sassl.data.readers.webdataset import WebDatasetReader
from ray_sassl.data.sources import Sources, find_sources
from ray_sassl.data.synthetic import ensure_synthetic
from ray_sassl.files import storage
from ray_sassl.files.cache import locked
from ray_sassl.files.s3 import ChangedError
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

READERS: dict[str, ParquetReader | WebDatasetReader | FolderReader] = {
    "parquet": ParquetReader(),
    "webdataset": WebDatasetReader(),
    "folder": FolderReader(),
}

_THREADS, _FEWEST_THREADS = 64, 8
_IN_FLIGHT_BYTES = 2**27

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(num_threads: int) -> OrderedMap:
    """Each item's result, computed by so many threads."""

    def each(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                for future in ahead(partial(pool.submit, function), items, 4 * num_threads):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    return each


def build_index(
    config: DataConfig,
    num_threads: int = 16,
    progress: Callable[[int, int], None] | None = None,
    *,
    each: OrderedMap | None = None,
    before: Index | None = None,
) -> Index:
    """The index of the data set at `config.path`. Files are opened in parallel, and the result does not depend on their timing.

    Args:
        config: The data set.
        num_threads: Files that are opened at a time.
        progress: Called with (files done, number of files) after each file that is scanned.
        each: Scans the shards instead of threads, such as on a cluster.
        before: An earlier index of the data set; what has not changed since is taken from it.

    Raises:
        UsageError: there are no rows, or the files do not match the config; see the readers.
    """
    built_ns = time.time_ns()
    sources = find_sources(config)
    return _index_of(config, sources, built_ns, each or in_threads(num_threads), progress, before)


def alike(names: Iterable[str]) -> str:
    """The names that people read as the same, in groups; empty if there are none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(ascii(name))
    return "; ".join(", ".join(group) for group in groups.values() if len(group) > 1)


def _index_of(
    config: DataConfig,
    sources: Sources,
    built_ns: int,
    each: OrderedMap,
    progress: Callable[[int, int], None] | None,
    before: Index | None,
) -> Index:
    where = ", ".join(config.paths)
    if own := sources.own_in_words():
        log.warning("%s: %s", where, own)

    def watched(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
        for done, result in enumerate(each(function, items), start=1):
            if progress is not None:
                progress(done, len(items))
            yield result

    reader = READERS[sources.format]
    if isinstance(reader, ShardReader):
        scan = scan_shards(reader, sources, config, watched, before)
    else:
        scan = scan_folder(reader, sources, config)
    lost = [sources.lost.in_words("files are left out"), scan.lost.in_words("members of shards are left out or merged")]
    left_out = ". ".join(words for words in lost if words)
    refuse_left_out(config, left_out)
    if left_out:
        log.warning("%s: %s", where, left_out)
    if twins := alike(scan.class_names):
        log.warning("%s: classes whose names differ only in case, spaces or the form of their Unicode: %s", where, twins)
    if not scan.groups["num_rows"].to_numpy().sum():
        why = "; ".join(str(problem) for problem in scan.problems[:3]) or "all empty"
        raise UsageError(f"{where} has no rows: {len(sources.files):,} files, {why}")
    return Index(
        config,
        sources.format,
        sources.root,
        files_table(sources, scan.facts),
        scan.groups,
        scan.rows,
        scan.class_names,
        tuple(scan.problems),
        {name: sources.ignored.get(name, 0) + scan.ignored.get(name, 0) for name in sorted(sources.ignored | scan.ignored)},
        left_out,
        built_ns,
        scan.mapped,
    )


def refuse_left_out(config: DataConfig, left_out: str) -> None:
    """Check that nothing is left out if the config demands that.

    Raises:
        UsageError: something is left out.
    """
    if config.strict and left_out:
        raise UsageError(f"{', '.join(config.paths)}: {left_out}. With --strict (data.strict=true) nothing may be left out.")


def cached_index(
    config: DataConfig,
    cache_path: str | os.PathLike[str],
    num_threads: int = 16,
    progress: Callable[[int, int], None] | None = None,
    *,
    with_content: bool = False,
    each: OrderedMap | None = None,
) -> Index:
    """The index at `cache_path` if it is still valid; otherwise it is built, and saved there. The files are listed once.

    It is no longer valid if the config names other data or columns, or if it is damaged. If files were changed, removed or added, these
    alone are scanned.
    """
    built_ns = time.time_ns()
    before = None
    if storage.exists(cache_path):
        with suppress(UsageError):
            before = Index.load(cache_path)
    if before is not None and not (before.has_facts and is_of(before, config)):
        before = None
    sources = find_sources(config, before.pictures() if before is not None else ())
    if before is not None and sources.format == before.format and not before.changes(sources.files):
        refuse_left_out(config, before.left_out)
        return replace(before, config=config)
    if before is not None and sources.format != before.format:
        before = None
    index = _index_of(config, sources, built_ns, each or in_threads(num_threads), progress, before)
    if with_content:
        index = with_digests(index)
    index.save(cache_path)
    return replace(Index.load(cache_path), config=config)


def kept_index(config: DataConfig) -> Index:
    """The index of a data set that several processes and commands of this machine need, in the cache folder; only what has changed since is
    scanned.

    Raises:
        UsageError: there are no rows, or the files do not match the config.
    """
    name = hashlib.sha256(json.dumps(_scanned(config), sort_keys=True).encode()).hexdigest()[:16]
    try:
        path = indexes_dir() / f"{name}.arrow"
        with locked(path):
            index = cached_index(config, path)
    except OSError as error:
        log.warning("the index of %s cannot be kept in the cache folder (%s)", ", ".join(config.paths), error)
        return build_index(config)
    keep_newest(path)
    return index


def is_of(index: Index, config: DataConfig) -> bool:
    """Whether an index of this config would be the same, as long as the files do not change."""
    return _scanned(index.config) == _scanned(config)


def read_groups(index: Index, groups: Sequence[int]) -> Rows:
    """The rows of the row groups, one group after the other, with a `BadRow` in the place of a row that cannot be read.

    Raises:
        UsageError: a file has changed since the index was built.
    """
    return _read(index, [(group, slice(None)) for group in groups])


def read_runs(index: Index, first: np.ndarray, length: np.ndarray) -> Rows:
    """The rows of runs of consecutive ids, one run after the other, each within one row group; otherwise as `read_groups`.

    Args:
        first, length: (n,) int64, the first id of each run, and its number of rows, at least 1.
    """
    groups = np.searchsorted(index.group_first, first, side="right") - 1
    start = first - index.group_first[groups]
    is_whole = length == index.group_rows[groups]
    runs = zip(groups.tolist(), start.tolist(), (start + length).tolist(), is_whole.tolist(), strict=True)
    return _read(index, [(group, slice(None) if whole else slice(begin, end)) for group, begin, end, whole in runs])


def each_group(index: Index, groups: Sequence[int]) -> Iterator[Rows]:
    """The rows of each row group, as `read_groups` gives them; of an object store, the next group is read meanwhile.

    Raises:
        UsageError: a file has changed since the index was built.
    """
    if index.is_local:
        yield from (read_groups(index, [group]) for group in groups)
        return
    with ThreadPoolExecutor(1) as pool:
        for rows in ahead(lambda group: pool.submit(read_groups, index, [group]), groups, 1):
            yield rows.result()


def _read(index: Index, pieces: Sequence[tuple[int, slice]]) -> Rows:
    is_made_here = any(path in SYNTHETIC for path in index.config.paths)
    if is_made_here:
        ensure_synthetic()  # another machine may have built the index
    for path in filter(is_hub, index.config.paths):
        ensure_hub(path)
    if index.is_local:
        parts = [_piece(index, piece, is_made_here) for piece in pieces]
    else:
        with ThreadPoolExecutor(_num_threads(index, pieces)) as pool:
            parts = list(pool.map(lambda piece: _piece(index, piece, is_made_here), pieces))
    return parts[0] if len(parts) == 1 else Rows.joined(parts)


def _num_threads(index: Index, pieces: Sequence[tuple[int, slice]]) -> int:
    """How many pieces are read at a time: so many that a store's latency does not matter, and few if they are large, since what is being
    read is in memory twice."""
    if not pieces:
        return 1
    group, part = pieces[len(pieces) // 2]
    num_rows = max(1, len(range(index.group_rows[group])[part]))
    of_piece = num_rows * index.num_bytes // max(1, index.num_rows)
    most = _THREADS // min(_THREADS, num_rows) if index.format == "folder" else _THREADS  # a folder's files have threads of their own
    return max(1, min(most, max(_FEWEST_THREADS, _IN_FLIGHT_BYTES // max(1, of_piece)), len(pieces)))


def _piece(index: Index, piece: tuple[int, slice], is_made_here: bool) -> Rows:
    group, part = piece
    try:
        if not is_made_here:
            _refuse_changed(index, group)
        return read_cached(index, group, part, partial(READERS[index.format].read, index, group, part))
    except FileNotFoundError:
        return _gone(index, group).at(np.arange(index.group_rows[group])[part])
    except ChangedError as error:
        raise _changed(index.file_path(index.group_place(group)[0])) from error


def _refuse_changed(index: Index, group: int) -> None:
    """Check by size and time of change that the row group's file is the one that was indexed; an S3 store checks it with each request.

    Raises:
        UsageError: it has changed.
        FileNotFoundError: it does not exist any more.
    """
    if index.format == "folder":  # each file is a row, which may change without harm to others
        return
    file = index.group_place(group)[0]
    path = index.file_path(file)
    if storage.object_of(path) is not None:
        return
    now = storage.stat(path)
    if now is None:
        raise FileNotFoundError(path)
    if (now.size_bytes, now.mtime_ns) != index.file_stamp(file):
        raise _changed(path)


def _changed(path: str) -> UsageError:
    return UsageError(
        f"{path} has changed since the index was built: its size or its time of change is another. Restore it, or start a new run. "
        "Copies on the disks of several machines must keep the time of change (cp -p, rsync -t)."
    )


def _gone(index: Index, group: int) -> Rows:
    """A row group whose file does not exist any more: each of its rows is bad."""
    path = index.file_path(index.group_place(group)[0])
    sample_id, place = index.sample_ids(group), index.rows_in_file(group)
    rows: list[bytes | BadRow] = [
        BadRow(path, int(row), int(id_), "the file is gone since the index was built") for row, id_ in zip(place, sample_id, strict=True)
    ]
    labels = np.full(len(rows), NO_LABEL, np.int64)
    return Rows(sample_id, rows, labels, [f"{path}#{row}" for row in place], [path] * len(rows), place)


def all_labels(index: Index) -> np.ndarray:
    """(num_rows,) int64: the label of every row by its sample id, -1 if there is none; images are not read."""
    return READERS[index.format].labels(index)


def all_names(index: Index) -> list[str] | None:
    """The name of every row by its sample id, or None if rows have none; images are not read."""
    return READERS[index.format].names(index)


def _scanned(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(SCANNED_FIELDS))
