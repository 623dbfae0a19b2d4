"""The order in which an epoch visits the rows, as a pure function of (seed, epoch, index).

Row groups are permuted over the whole data set and joined into windows of at least `shuffle_window` rows; the rows of a window are
permuted and cut into blocks. A window is what one task reads, a block is what passes from stage to stage. Nothing is drawn from global
state, so any process can work out any part of any epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_GROUP_ORDER, _ROW_ORDER = 0, 1


@dataclass(frozen=True)
class Window:
    """Row groups that are read, and whose rows are shuffled, together.

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
    """Rows that are worked on together, in order.

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
        shuffle_window: Rows that are shuffled together, at least.
        block_rows: Rows of a block; the last block of a window may hold from half to one and a half times as many.
    """

    def __init__(self, index: Index, seed: int, shuffle_window: int, block_rows: int) -> None:
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.block_rows = block_rows
        self.group_rows = np.asarray(index.group_rows, dtype=np.int64)
        self.group_first = np.cumsum(self.group_rows) - self.group_rows

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order; each row group is in exactly one."""
        order = np.random.default_rng([self.seed, epoch, _GROUP_ORDER]).permutation(len(self.group_rows))
        order = order[self.group_rows[order] > 0]
        ends = _cut_points(np.cumsum(self.group_rows[order]), self.shuffle_window)
        starts = [0, *ends[:-1]]
        pieces = [order[start:end] for start, end in zip(starts, ends, strict=True)]
        return [Window(epoch, number, tuple(piece.tolist()), int(self.group_rows[piece].sum())) for number, piece in enumerate(pieces)]

    def blocks(self, window: Window) -> list[Block]:
        """The window's rows, shuffled and cut into blocks; each row is in exactly one."""
        groups = np.asarray(window.groups)
        ids = np.concatenate(
            [np.arange(first, first + rows) for first, rows in zip(self.group_first[groups], self.group_rows[groups], strict=True)]
        )
        ids = np.random.default_rng([self.seed, window.epoch, _ROW_ORDER, window.number]).permutation(ids)
        ends = _cut_points(np.arange(1, len(ids) + 1), self.block_rows)
        starts = [0, *ends[:-1]]
        return [Block(window.epoch, number, ids[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def portions(index: Index, num_rows: int) -> list[list[int]]:
    """The row groups that are not empty, in order, in lists of about `num_rows` rows."""
    groups = np.flatnonzero(index.group_rows > 0)
    number = (np.cumsum(index.group_rows[groups]) - 1) // num_rows
    return [portion.tolist() for portion in np.split(groups, np.flatnonzero(np.diff(number)) + 1) if len(portion)]


def _cut_points(cumulative: np.ndarray, at_least: int) -> Sequence[int]:
    """Where to end each piece so that it holds at least so much; a last piece of under half of that joins the one before it.

    `cumulative` (n,) is the running total up to and including each item; the ends are item counts, and the last one is n.
    """
    ends: list[int] = []
    done = 0
    while done < cumulative[-1]:
        end = min(int(np.searchsorted(cumulative, done + at_least)) + 1, len(cumulative))
        if 2 * (cumulative[end - 1] - done) < at_least and ends:
            ends[-1] = end
        else:
            ends.append(end)
        done = int(cumulative[end - 1])
    return ends
