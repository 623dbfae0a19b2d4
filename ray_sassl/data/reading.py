"""Build an index from paths and read rows with it: chooses the reader, opens files in parallel, and checks that files are still those that
were indexed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ray_sassl.data import NO_LABEL, SYNTHETIC, DataConfig, Format, Reader, Rows
from ray_sassl.data.contents import with_digests
from ray_sassl.data.disk_cache import read_cached
from ray_sassl.data.index import FILE_SCHEMA, SCANNED_FIELDS, Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.folder import FolderReader
from ray_sassl.data.readers.parquet import ParquetReader
from ray_sassl.data.readers.webdataset import WebDatasetReader
from ray_sassl.data.sources import resolve
from ray_sassl.data.synthetic import ensure_synthetic
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

READERS: dict[Format, Reader] = {"parquet": ParquetReader(), "webdataset": WebDatasetReader(), "folder": FolderReader()}

_Item = TypeVar("_Item")

_Result = TypeVar("_Result")


def build_index(config: DataConfig, num_threads: int = 16, progress: Callable[[int, int], None] | None = None) -> Index:
    """The index of the data set at `config.path`. Files are opened in parallel, and the result does not depend on their timing.

    Args:
        config: The data set.
        num_threads: Files that are opened at a time.
        progress: Called with (files done, number of files) after each file.

    Raises:
        UsageError: there are no rows, or the files do not match the config; see the readers.
    """
    built_ns = time.time_ns()
    format_, entries, sources = resolve(config)
    where = ", ".join(config.paths)
    if own := sources.own_in_words():
        log.warning("%s: %s", where, own)

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
    lost = [sources.lost.in_words("files are left out"), scan.lost.in_words("members of shards are left out or merged")]
    left_out = ". ".join(words for words in lost if words)
    refuse_left_out(config, left_out)
    if left_out:
        log.warning("%s: %s", where, left_out)
    if not (scan.groups.num_rows and sum(scan.groups["num_rows"].to_pylist())):
        why = "; ".join(str(problem) for problem in scan.problems[:3]) or "all empty"
        raise UsageError(f"{where} has no rows: {len(entries):,} files, {why}")
    root = _common_root([entry.path for entry in entries])
    columns = [
        [entry.path[len(root) :] for entry in entries],
        [entry.size_bytes for entry in entries],
        [entry.mtime_ns for entry in entries],
    ]
    files = pa.table(columns, schema=FILE_SCHEMA)
    ignored = {name: sources.ignored.get(name, 0) + scan.ignored.get(name, 0) for name in sorted(sources.ignored | scan.ignored)}
    return Index(config, format_, root, files, scan.groups, scan.rows, scan.class_names, scan.problems, ignored, left_out, built_ns)


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
) -> Index:
    """The index at `cache_path` if it is still valid; otherwise it is built, and saved there.

    It is no longer valid if a file was changed, removed or added, if the config names other data or columns, or if it is damaged.
    """
    if storage.exists(cache_path):
        try:
            index = Index.load(cache_path)
        except UsageError:
            index = None
        if index is not None and _scanned(index.config) == _scanned(config) and not index.changed_files():
            refuse_left_out(config, index.left_out)
            return replace(index, config=config)
    index = build_index(config, num_threads, progress)
    if with_content:
        index = with_digests(index)
    index.save(cache_path)
    return index


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


def _read(index: Index, pieces: Sequence[tuple[int, slice]]) -> Rows:
    is_made_here = any(path in SYNTHETIC for path in index.config.paths)
    if is_made_here:
        ensure_synthetic()  # another machine may have built the index
    parts = []
    for group, part in pieces:
        try:
            if not is_made_here:
                _refuse_changed(index, group)
            parts.append(read_cached(index, group, part, partial(READERS[index.format].read, index, group, part)))
        except FileNotFoundError:
            parts.append(_gone(index, group).at(np.arange(index.group_rows[group])[part]))
    return parts[0] if len(parts) == 1 else Rows.joined(parts)


def _refuse_changed(index: Index, group: int) -> None:
    """Check by size and time of change that the row group's file is the one that was indexed.

    Raises:
        UsageError: it has changed.
        FileNotFoundError: it does not exist any more.
    """
    if index.format == "folder":  # each file is a row, which may change without harm to others
        return
    file = index.group_place(group)[0]
    path = index.file_path(file)
    then = (index.files["size_bytes"][file].as_py(), index.files["mtime_ns"][file].as_py())
    now = storage.stat(path)
    if now is None:
        raise FileNotFoundError(path)
    if (now.size_bytes, now.mtime_ns) != then:
        raise UsageError(
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


def _common_root(paths: list[str]) -> str:
    """The common beginning of all paths, up to a `/`."""
    first, last = min(paths), max(paths)
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, shared) + 1]


def _scanned(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(SCANNED_FIELDS))
