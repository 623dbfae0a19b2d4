"""The order in which an epoch visits the rows, as a pure function of (seed, epoch, index).

Row groups are permuted over the whole data set and joined into windows of at least `shuffle_window` rows; the rows of a window are
permuted and cut into blocks. One task reads a window, and blocks pass from stage to stage. Nothing is drawn from global state, so any
process can compute any part of any epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_GROUP_ORDER, _ROW_ORDER = 0, 1


@dataclass(frozen=True)
class Window:
    """Row groups that are read together and whose rows are shuffled together.

    Attributes:
        epoch: Counted from 0.
        number: The window's place in its epoch.
        groups: The numbers of its row groups in the index.
        num_rows: Rows in all of them.
    """

    epoch: int
    number: int
    groups: tuple[int, ...]
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
        index: Gives the rows of each row group.
        seed: The run's seed.
        shuffle_window: The least number of rows that are shuffled together.
        block_rows: Rows per block; the last block of a window may have from half to one and a half times as many.
    """

    def __init__(self, index: Index, seed: int, shuffle_window: int, block_rows: int) -> None:
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.block_rows = block_rows
        self.group_rows = np.asarray(index.group_rows, dtype=np.int64)
        self.group_first = np.cumsum(self.group_rows) - self.group_rows

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order; each row group is in exactly one."""
        return list(self.each_window(epoch))

    def each_window(self, epoch: int) -> Iterator[Window]:
        """Like `windows`, one after the other: the first costs little more than the order of the row groups."""
        order = np.random.default_rng([self.seed, epoch, _GROUP_ORDER]).permutation(len(self.group_rows))
        order = order[self.group_rows[order] > 0]
        cumulative = np.cumsum(self.group_rows[order])
        start = 0
        for number, end in enumerate(_cut_points(cumulative, self.shuffle_window)):
            num_rows = int(cumulative[end - 1] - (cumulative[start - 1] if start else 0))
            yield Window(epoch, number, tuple(order[start:end].tolist()), num_rows)
            start = end

    def blocks(self, window: Window) -> list[Block]:
        """The window's rows, shuffled and cut into blocks; each row is in exactly one."""
        groups = np.asarray(window.groups)
        ids = runs(self.group_first[groups], self.group_rows[groups])
        ids = np.random.default_rng([self.seed, window.epoch, _ROW_ORDER, window.number]).permutation(ids)
        ends = list(_cut_points(np.arange(1, len(ids) + 1), self.block_rows))
        starts = [0, *ends[:-1]]
        return [Block(window.epoch, number, ids[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def runs(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(sum of length,) int64: one run after the other, each with `length` (n,) numbers from `first` (n,) on."""
    ends = np.cumsum(length)
    return np.repeat(first - (ends - length), length) + np.arange(ends[-1] if len(ends) else 0)


def portions(index: Index, num_rows: int) -> list[list[int]]:
    """The row groups that are not empty, in order, in lists of about `num_rows` rows."""
    groups = np.flatnonzero(index.group_rows > 0)
    number = (np.cumsum(index.group_rows[groups]) - 1) // num_rows
    return [portion.tolist() for portion in np.split(groups, np.flatnonzero(np.diff(number)) + 1) if len(portion)]


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
