"""The order in which an epoch visits the rows, as a pure function of (seed, epoch, index).

The data set is cut into pieces: Parquet row groups, which cannot be read in parts, or else runs of a few rows of a shard or folder. The
pieces are permuted over the whole data set and joined into windows. A window's rows are dealt to its blocks so that each block gets as many
rows of every piece as any other, give or take one, and then shuffled within the block. So with at least as many pieces in a window as rows
in a block, the rows of a block come from different places of the data set, as in a uniform shuffle, however small the window is.
Nothing is drawn from global state, so any process can compute any part of any epoch.

Runs from before there were pieces (`data.shuffle_window`) keep their order: windows of whole row groups, whose rows are permuted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ray_sassl.process.memory import memory_bytes

if TYPE_CHECKING:
    from ray_sassl.data import DataConfig
    from ray_sassl.data.index import Index

_PIECE_ORDER, _ROW_ORDER, _DEAL = 0, 1, 2
MIXED_ROWS = 256
"""Rows of a batch that windows of the default size mix as a uniform shuffle does."""
_GROUPS = 192
"""Row groups in a window by default: with 1,000 classes in order, a batch of 256 then has 175 of them, and 0.3 % same-class pairs."""
_TASK_BYTES, _TASK_ROWS = 2**28, 8192
"""Encoded images, and rows, that one task works on: so many views wait at most, since the blocks of tasks come out in order."""
_PIECE_BYTES, _PIECE_ROWS = 2**19, 16
"""A piece of a shard has at least so many bytes, which are worth a request or a seek, or so many rows."""
_MOST_PIECE_ROWS = 256
_MEMORY_SHARE = 4
_MOST_OVER = 1.5
"""A window takes at most so many times its bytes, whichever images are in it."""


@dataclass(frozen=True)
class Window:
    """Pieces whose rows are shuffled together.

    Attributes:
        epoch: Counted from 0.
        number: The window's place in its epoch.
        pieces: The numbers of its pieces, in the order of the plan.
        num_rows: Rows in all of them.
    """

    epoch: int
    number: int
    pieces: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True)
class Block:
    """Rows that are processed together, in order.

    Attributes:
        epoch: Counted from 0.
        number: The block's place in its window.
        sample_id: (n,) int64.
    """

    epoch: int
    number: int
    sample_id: np.ndarray


class Plan:
    """The order of every epoch.

    Args:
        index: Gives the rows and bytes of each row group.
        seed: The run's seed.
        block_rows: Rows per block; the last block of a window may have from half to one and a half times as many.
        window_bytes: Encoded images that are shuffled together, about; by default `default_window_bytes`.
        window_rows: Instead: the least number of rows of a window, in the order of older runs.
    """

    def __init__(
        self, index: Index, seed: int, block_rows: int, *, window_bytes: int | None = None, window_rows: int | None = None
    ) -> None:
        self.seed, self.block_rows = seed, block_rows
        self.group_rows = np.asarray(index.group_rows, dtype=np.int64)
        self.group_first = np.cumsum(self.group_rows) - self.group_rows
        self.is_by_rows = window_rows is not None
        most_rows = int(self.group_rows.max(initial=1))
        self._row_bytes = row_bytes(index)
        self._mean_bytes = mean = float(self._row_bytes @ self.group_rows / max(self.group_rows.sum(), 1)) or 1.0
        if window_rows is not None:
            self.window_rows, self.piece_rows, self.task_rows, self._window_bytes = window_rows, most_rows, 2**62, 0
        else:
            self._window_bytes = window_bytes or default_window_bytes(index, block_rows)
            self.window_rows = _in_blocks(self._window_bytes / mean, block_rows)
            self.task_rows = _task_rows(mean, block_rows)
            self.piece_rows = most_rows if index.format == "parquet" else _piece_rows(self.window_rows, mean, block_rows)
        pieces = -(-self.group_rows // self.piece_rows)
        self._pieces_before = np.cumsum(pieces) - pieces
        self.num_pieces = int(pieces.sum())

    def piece_runs(self, pieces: np.ndarray | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 each: the first row of each of the pieces (n,), and its number of rows."""
        pieces = np.asarray(pieces, np.int64)
        groups = self._groups_of(pieces)
        start = (pieces - self._pieces_before[groups]) * self.piece_rows
        return self.group_first[groups] + start, np.minimum(self.piece_rows, self.group_rows[groups] - start)

    def group_of(self, sample_id: np.ndarray) -> np.ndarray:
        """(n,) int64: the row groups in which the rows (n,) are."""
        return np.searchsorted(self.group_first, sample_id, side="right") - 1

    @property
    def mean_window_bytes(self) -> int:
        """Encoded images of a window."""
        return int(self._mean_bytes * min(self.window_rows, int(self.group_rows.sum())))

    @property
    def mean_piece_bytes(self) -> int:
        """Encoded images of a piece."""
        return int(self._mean_bytes * self.group_rows.sum() / max(self.num_pieces, 1))

    def _groups_of(self, pieces: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._pieces_before, pieces, side="right") - 1

    def row_ids(self, window: Window) -> np.ndarray:
        """(num_rows,) int64: the ids of the window's rows before they are shuffled."""
        return runs(*self.piece_runs(window.pieces))

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order; each piece is in exactly one."""
        return list(self.each_window(epoch))

    def each_window(self, epoch: int) -> Iterator[Window]:
        """Like `windows`, one after the other: the first costs little more than the order of the pieces."""
        order = np.random.default_rng([self.seed, epoch, _PIECE_ORDER]).permutation(self._unordered)
        cut = self._cut_by_rows if self.is_by_rows else self._cut_by_bytes
        for number, (pieces, num_rows) in enumerate(cut(order)):
            yield Window(epoch, number, tuple(pieces.tolist()), num_rows)

    @property
    def _unordered(self) -> np.ndarray:
        """What is permuted: small numbers of pieces, or, in older runs, of row groups, with the empty ones."""
        return np.arange(len(self.group_rows)) if self.is_by_rows else np.arange(self.num_pieces, dtype=np.int32)

    def _cut_by_rows(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        order = order[self.group_rows[order] > 0]
        cumulative = np.cumsum(self.group_rows[order])
        start = 0
        for end in _cut_points(cumulative, self.window_rows):
            yield self._pieces_before[order[start:end]], int(cumulative[end - 1] - (cumulative[start - 1] if start else 0))
            start = end

    def _cut_by_bytes(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Windows of at least `window_rows` rows, or of fewer if their images are large; a last window of less than half joins the one
        before it if its bytes allow."""
        most_bytes = _MOST_OVER * self._window_bytes
        looked_at = 16 + 2 * self.window_rows // self.piece_rows
        left, start = int(self.group_rows.sum()), 0
        while start < len(order):
            some = order[start : start + looked_at]
            _, length = self.piece_runs(some)
            rows = np.cumsum(length)
            if rows[-1] < min(self.window_rows, left):  # many pieces are the last of their groups
                looked_at *= 2
                continue
            taken = np.cumsum(length * self._row_bytes[self._groups_of(some)])
            end = int(np.searchsorted(rows, self.window_rows)) + 1
            if 2 * (left - rows[min(end, len(rows)) - 1]) < self.window_rows and rows[-1] == left:
                end = len(some)
            end = max(1, min(end, len(some), int(np.searchsorted(taken, most_bytes, side="right"))))
            yield some[:end], int(rows[end - 1])
            start, left = start + end, left - int(rows[end - 1])

    def blocks(self, window: Window) -> list[Block]:
        """The window's rows, shuffled and cut into blocks; each row is in exactly one."""
        ids = self._permuted(window) if self.is_by_rows else self._dealt(window)
        ends = list(_cut_points(np.arange(1, len(ids) + 1), self.block_rows))
        starts = [0, *ends[:-1]]
        return [Block(window.epoch, number, ids[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]

    def block_sizes(self, window: Window) -> list[int]:
        """The number of rows of each of the window's blocks."""
        ends = list(_cut_points(np.arange(1, window.num_rows + 1), self.block_rows))
        return np.diff(ends, prepend=0).tolist()

    @property
    def has_parts(self) -> bool:
        """Whether windows may be too large for one task."""
        return _MOST_OVER * self.window_rows + self.piece_rows > 2 * self.task_rows

    def parts(self, window: Window) -> list[range]:
        """The numbers of the window's blocks, in consecutive parts for one task each."""
        num_blocks = len(self.block_sizes(window))
        num_parts = round(window.num_rows / self.task_rows) if window.num_rows > 2 * self.task_rows else 1
        bounds = [num_blocks * part // num_parts for part in range(num_parts + 1)]
        return [range(first, end) for first, end in pairwise(bounds) if end > first]

    def _permuted(self, window: Window) -> np.ndarray:
        return np.random.default_rng([self.seed, window.epoch, _ROW_ORDER, window.number]).permutation(self.row_ids(window))

    def _dealt(self, window: Window) -> np.ndarray:
        """(num_rows,) int64: the ids in an order in which every block has its share of every piece.

        The rows of a piece of n, shuffled, stand at (u, 1 + u, ..., n - 1 + u) / n of the window; each piece has a u, uniform in [0, 1).
        """
        draws = np.random.default_rng([self.seed, window.epoch, _DEAL, window.number])
        first, length = self.piece_runs(window.pieces)
        piece = np.repeat(np.arange(len(length)), length)
        ids = runs(first, length)[np.argsort(piece + draws.random(len(piece)))]
        place = np.arange(len(piece)) - np.repeat(np.cumsum(length) - length, length)
        ids = ids[np.argsort((place + draws.random(len(length))[piece]) / length[piece])]
        ends = list(_cut_points(np.arange(1, len(ids) + 1), self.block_rows))
        block = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        return ids[np.argsort(block + draws.random(len(ids)))]


def plan_of(index: Index, data: DataConfig, seed: int) -> Plan:
    """The plan of the index's rows that the config describes."""
    window_bytes = None if data.shuffle_gb is None else int(data.shuffle_gb * 1e9)
    return Plan(index, seed, data.block_rows, window_bytes=window_bytes, window_rows=data.shuffle_window)


def with_window(data: DataConfig, index: Index) -> DataConfig:
    """The config with the size of its windows, if that was left open."""
    if data.shuffle_gb is not None or data.shuffle_window is not None:
        return data
    return data.model_copy(update={"shuffle_gb": default_window_bytes(index, data.block_rows) / 1e9})


def default_window_bytes(index: Index, block_rows: int, *, bounded: bool = True) -> int:
    """Encoded images to shuffle together, in bytes: as many as mix batches of 256 rows as a uniform shuffle does, whatever the order of the
    data, and, if `bounded`, at most a quarter of this machine's memory."""
    rows = max(index.num_rows, 1)
    mean = float(row_bytes(index) @ index.group_rows / rows) or 1.0
    wanted = mean * _task_rows(mean, block_rows)
    if index.format == "parquet":
        group_rows = rows / max(int((index.group_rows > 0).sum()), 1)
        wanted = max(wanted, mean * (_GROUPS * group_rows + block_rows))  # windows are of whole blocks
    return math.ceil(min(wanted, mean * (rows + block_rows), memory_bytes() / _MEMORY_SHARE if bounded else math.inf))


def row_bytes(index: Index) -> np.ndarray:
    """(num_groups,) float64: the mean bytes of a row of each row group, as far as the index knows: of Parquet, the mean of its file; of a
    folder, that of all."""
    if index.format == "folder":
        return np.full(index.num_groups, index.num_bytes / max(index.num_rows, 1))
    file, start, stop = (index.groups[name].to_numpy() for name in ("file", "start", "stop"))
    if index.format == "webdataset":
        return (stop - start) / np.maximum(index.group_rows, 1)
    of_file = np.bincount(file, weights=index.group_rows, minlength=index.num_files)
    return (index.files["size_bytes"].to_numpy() / np.maximum(of_file, 1))[file]


def runs(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(sum of length,) int64: one run after the other, each with `length` (n,) numbers from `first` (n,) on."""
    ends = np.cumsum(length)
    return np.repeat(first - (ends - length), length) + np.arange(ends[-1] if len(ends) else 0)


def portions(index: Index, num_rows: int) -> list[list[int]]:
    """The row groups that are not empty, in order, in lists of about `num_rows` rows."""
    groups = np.flatnonzero(index.group_rows > 0)
    number = (np.cumsum(index.group_rows[groups]) - 1) // num_rows
    return [portion.tolist() for portion in np.split(groups, np.flatnonzero(np.diff(number)) + 1) if len(portion)]


def _in_blocks(rows: float, block_rows: int) -> int:
    """A number of rows that makes whole blocks if there is room for one."""
    return max(1, int(rows) // block_rows * block_rows or int(rows))


def _task_rows(mean_bytes: float, block_rows: int) -> int:
    return max(block_rows, _in_blocks(min(_TASK_BYTES / mean_bytes, _TASK_ROWS), block_rows))


def _piece_rows(window_rows: int, mean_bytes: float, block_rows: int) -> int:
    """Rows of a piece of a shard or folder, a power of two: as many as leave two pieces for each row of a batch or block, but enough for a
    request."""
    enough = min(_PIECE_BYTES / mean_bytes, _PIECE_ROWS)
    rows = max(window_rows // (2 * max(MIXED_ROWS, block_rows)), enough, 1)
    return min(_MOST_PIECE_ROWS, window_rows, 2 ** math.ceil(math.log2(rows)))


def _cut_points(cumulative: np.ndarray, at_least: int) -> Iterator[int]:
    """Where each piece ends so that it has at least `at_least` rows; a last piece of less than half of that joins the one before it.

    `cumulative` (n,) is the running total up to and including each item; the ends are item counts, and the last one is n.
    """
    num_rows = int(cumulative[-1]) if len(cumulative) else 0
    done = 0
    while done < num_rows:
        end = min(int(np.searchsorted(cumulative, done + at_least)) + 1, len(cumulative))
        done = int(cumulative[end - 1])
        if 2 * (num_rows - done) < at_least:
            end, done = len(cumulative), num_rows
        yield end
