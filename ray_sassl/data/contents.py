"""What the files of a data set hold, as digests: so that a run can go on with data that were moved, or copied again with other times.

Up to `BUDGET_BYTES` all bytes of all files count. Of a larger data set so many bytes are read, in pieces that are spread evenly over its
files and over each file, with the first and the last bytes of each: a copy that was cut off, or made of other images, differs in them;
single bytes that differ between the pieces are not seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ray_sassl.data import SYNTHETIC
from ray_sassl.data.index import Index
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

BUDGET_BYTES = 2**30
_PIECE_BYTES = 2**16
_FILES_AT_ONCE = 16
_ANNOUNCED_BYTES = 2**28
_COLUMN = "digest"


def with_digests(index: Index) -> Index:
    """The index with a digest of each file's content, which are read for it; as it is where it has them, or the data is made here."""
    if _COLUMN in index.files.column_names or any(path in SYNTHETIC for path in index.config.paths):
        return index
    pieces = _pieces(index)
    num_bytes = sum(size for of_file in pieces for _, size in of_file)
    if num_bytes >= _ANNOUNCED_BYTES:
        log.warning("Reading %.1f of %.1f GB of the data, to know its content again.", num_bytes / 1e9, index.num_bytes / 1e9)
    paths = index.file_paths(0, index.num_files)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        digests = list(pool.map(_digest, paths, pieces))
    return replace(index, files=index.files.append_column(_COLUMN, pa.array(digests, pa.binary())))


def check_same_content(then: Index, now: Index) -> Index:
    """See that another index is of the same images in the same order; returns it with digests.

    Args:
        then: Of the data as it was.
        now: Of the data as it is, maybe elsewhere.

    Raises:
        UsageError: the images, their labels or their order are others, or nobody knows what they were; the message names the first file.
    """
    if _COLUMN not in then.files.column_names:
        if any(path in SYNTHETIC for path in then.config.paths) or _is_changed(then):
            raise UsageError("what the data held when the run began is not known, so data elsewhere cannot be compared with it")
        then = with_digests(then)
    _check_structure(then, now)
    now = with_digests(now)
    for file, (before, after) in enumerate(zip(_digests(then), _digests(now), strict=True)):
        if before != after:
            raise UsageError(f"{now.file_path(file)} holds other bytes than {then.file_path(file)} did when the run began")
    return now


def _is_changed(index: Index) -> bool:
    try:
        return bool(index.changed_files())
    except UsageError:  # nothing is there any more
        return True


def _check_structure(then: Index, now: Index) -> None:
    """See that both have files of the same sizes, row groups, labels and classes."""
    if (then.format, then.num_files) != (now.format, now.num_files):
        raise UsageError(
            f"the data now are {now.num_files:,} files ({now.format}) and were {then.num_files:,} ({then.format}) when the run began"
        )
    if then.class_names != now.class_names:
        raise UsageError("the classes of the data have other names, or another order, than when the run began")
    differing = np.flatnonzero(then.files["size_bytes"].to_numpy() != now.files["size_bytes"].to_numpy())
    if len(differing):
        file = int(differing[0])
        raise UsageError(
            f"{now.file_path(file)} has {now.file_stamp(file)[0]:,} bytes, and {then.file_path(file)} had "
            f"{then.file_stamp(file)[0]:,} when the run began"
        )
    if not then.groups.equals(now.groups) or (then.rows is None) != (now.rows is None):
        raise UsageError("the rows of the data lie otherwise in their files than when the run began")
    names = then.rows.column_names if then.rows is not None else ()
    if not all(then.row_column(name).equals(now.row_column(name)) for name in names):
        raise UsageError("the labels or names of the data's rows are others than when the run began")


def _pieces(index: Index) -> list[list[tuple[int, int]]]:
    """The (start, length) of what is read of each file; the same for data of the same sizes."""
    sizes = index.files["size_bytes"].to_pylist()
    if index.num_bytes <= BUDGET_BYTES:
        return [[(0, size)] for size in sizes]
    num_pieces = BUDGET_BYTES // _PIECE_BYTES
    every, per_file = -(-len(sizes) // num_pieces), max(2, num_pieces // len(sizes))
    return [_spread(size, per_file) if file % every == 0 else [] for file, size in enumerate(sizes)]


def _spread(size: int, count: int) -> list[tuple[int, int]]:
    if size <= count * _PIECE_BYTES:
        return [(0, size)]
    return [(start, _PIECE_BYTES) for start in np.linspace(0, size - _PIECE_BYTES, count).astype(np.int64).tolist()]


def _digest(path: str, pieces: Sequence[tuple[int, int]]) -> bytes:
    """Of the pieces of the file; nothing where there are none."""
    if not pieces:
        return b""
    filesystem, inner = storage.filesystem_of(path)

    def read() -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        with filesystem.open_input_file(inner) as file:
            for start, size in pieces:
                for place in range(start, start + size, 2**22):
                    digest.update(file.read_at(min(2**22, start + size - place), place))
        return digest.digest()

    return storage.retried(path, read)


def _digests(index: Index) -> list[bytes]:
    return index.file_column(_COLUMN)
