"""The pieces of the plan that each of several streams makes, as a pure function of the plan, of what was seen, and of their number.

An epoch's pieces go, one after the other, to the stream that has the fewest rows. At an epoch's end blocks are cut, so that every stream
gets as many rows of each epoch as the others, give or take one: training workers take equal parts of each step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ray_sassl.data.plan import Window
from ray_sassl.data.seen import SeenIds
from ray_sassl.pipeline import ViewSource, windows

CUT_AT = 0.8
"""Ray ends a block when it has more than this share of a plan's block."""


class Piece(NamedTuple):
    """The work of one task.

    Attributes:
        window: The window that has its rows.
        blocks: The numbers of those of its blocks that the task makes.
        rows: Of a single block: the places in it of the rows that the stream gets; None for all. The others are style partners.
    """

    window: Window
    blocks: range
    rows: range | None = None


@dataclass(frozen=True)
class Share:
    """One of the streams of a run.

    Attributes:
        number: Counted from 0.
        count: How many there are.
        num_bad: Rows that are known to be bad; streams of a run that is resumed may differ by so many.
        num_workers: The training workers that all of them feed; 0 where it is not known.
    """

    number: int = 0
    count: int = 1
    num_bad: int = 0
    num_workers: int = 0


def pieces(source: ViewSource, epochs: float, seen: SeenIds, share: Share | None = None) -> Iterator[Piece]:
    """The remaining pieces of all epochs, in order; a large window is several pieces. With a share, those of one stream of several.

    If a stopped run has left a small remainder of a block, its window's blocks are separate pieces: Ray would join two in one task, and
    then deal the rows of both to one worker.

    Several streams get the same rows of an epoch whether or not it was begun by as many. If it was begun by more or fewer, what is left of
    it is dealt anew.
    """
    if share is None or share.count == 1:
        for window in windows(source, epochs, seen):
            for blocks in _blocks_alone(source, window, seen) or source.plan.parts(window):
                yield Piece(window, blocks)
        return
    num_rows = source.index.num_rows
    begun = [epoch for epoch in seen.touched() if seen.count(epoch) < num_rows and epoch < epochs]
    anew: dict[int, int] = {}
    if _differ(source, begun, seen, share):
        extra = (begun[-1] + 1) * (num_rows % share.count)
        for epoch in reversed(begun):
            extra = anew[epoch] = extra - (num_rows - seen.count(epoch)) % share.count
    for epoch in range(math.ceil(epochs)):
        if seen.count(epoch) == num_rows:
            continue
        left = seen if epoch in anew else None
        for number, piece in dealt(source, epoch, share.count, anew.get(epoch), left):
            if number == share.number:
                yield from _left(source, piece, seen)


def dealt(
    source: ViewSource, epoch: int, num_streams: int, extra: int | None = None, left: SeenIds | None = None
) -> Iterator[tuple[int, Piece]]:
    """The epoch's pieces in order, each with the number of the stream that makes it.

    Args:
        extra: The first stream that gets one row more, if not all get the same, modulo the number of streams; by default streams take
            turns from epoch to epoch.
        left: Deal the rows that these have not seen; by default all.
    """
    given, waiting, held = [0] * num_streams, deque[tuple[Piece, int]](), 0
    for piece, rows in _counted(source, epoch, left):
        waiting.append((piece, rows))
        held += rows
        while waiting:
            first, rows = waiting[0]
            number = given.index(min(given))
            most = max(*given, given[number] + rows)
            if num_streams * most > sum(given) + held:  # what waits could not make up for it
                break
            waiting.popleft()
            given[number] += rows
            held -= rows
            yield number, first
    each, more = divmod(sum(given) + held, num_streams)
    extra = epoch * more if extra is None else extra
    wants = [each + ((number - extra) % num_streams < more) - has for number, has in enumerate(given)]
    for piece, rows in waiting:
        number = next(number for number, want in enumerate(wants) if want)
        if rows <= wants[number]:
            wants[number] -= rows
            yield number, piece
        else:
            yield from _joined(_cut(source, piece, wants, left))


def _counted(source: ViewSource, epoch: int, left: SeenIds | None) -> Iterator[tuple[Piece, int]]:
    """The pieces of an epoch that have rows to deal, and how many."""
    for window in source.plan.each_window(epoch):
        for blocks in source.plan.parts(window):
            piece = Piece(window, blocks)
            if rows := _num_left(source, piece, left):
                yield piece, rows


def _num_left(source: ViewSource, piece: Piece, seen: SeenIds | None) -> int:
    """How many of the piece's rows were not seen."""
    window, blocks, rows = piece
    unseen = None if seen is None else seen.unseen(window.epoch, source.plan.row_ids(window))
    if unseen is None or unseen.all():
        return len(rows) if rows is not None else sum(source.plan.block_sizes(window)[blocks.start : blocks.stop])
    return int(sum(has.sum() for has in _unseen(source, piece, seen).values())) if unseen.any() else 0


def _unseen(source: ViewSource, piece: Piece, seen: SeenIds | None) -> dict[int, np.ndarray]:
    """By number of a block: (n,) bool, which of its rows are the piece's and were not seen."""
    window, blocks, rows = piece
    if seen is None:
        return {number: np.ones(source.plan.block_sizes(window)[number], bool) for number in blocks}
    unseen = {block.number: seen.unseen(window.epoch, block.sample_id) for block in source.plan.blocks(window)[blocks.start : blocks.stop]}
    if rows is not None:
        (has,) = unseen.values()
        has[: rows.start] = has[rows.stop :] = False
    return unseen


def _cut(source: ViewSource, piece: Piece, wants: list[int], left: SeenIds | None) -> Iterator[tuple[int, Piece]]:
    """The piece's blocks, and parts of blocks, for one stream after the other; their wants are reduced by what they get."""
    for block, has in _unseen(source, piece, left).items():
        places, start = np.flatnonzero(has), 0
        while len(places):
            number = next(number for number, want in enumerate(wants) if want)
            taken = min(wants[number], len(places))
            wants[number] -= taken
            stop = len(has) if taken == len(places) else int(places[taken])
            rows = None if (start, stop) == (0, len(has)) else range(start, stop)
            yield number, Piece(piece.window, range(block, block + 1), rows)
            places, start = places[taken:], stop


def _joined(parts: Iterator[tuple[int, Piece]]) -> Iterator[tuple[int, Piece]]:
    """The same with consecutive whole blocks of one stream as one piece, whose window is read once."""
    last: tuple[int, Piece] | None = None
    for number, piece in parts:
        if last is not None and last[0] == number and last[1].rows is piece.rows is None and last[1].blocks.stop == piece.blocks.start:
            last = number, Piece(piece.window, range(last[1].blocks.start, piece.blocks.stop))
            continue
        if last is not None:
            yield last
        last = number, piece
    if last is not None:
        yield last


def _differ(source: ViewSource, begun: Sequence[int], seen: SeenIds, share: Share) -> bool:
    """Whether the streams would have different numbers of rows left of these epochs, because more or fewer streams have begun them."""
    rests = [0] * share.count
    for epoch in begun:
        for number, piece in dealt(source, epoch, share.count):
            rests[number] += _num_left(source, piece, seen)
    return max(rests) - min(rests) > len(begun) * (1 + share.num_bad)


def _left(source: ViewSource, piece: Piece, seen: SeenIds) -> Iterator[Piece]:
    """What is to do of the piece."""
    if not seen.is_touched(piece.window.epoch):
        yield piece
    elif alone := _blocks_alone(source, piece.window, seen):
        pieces = (Piece(piece.window, blocks, piece.rows) for blocks in alone if blocks.start in piece.blocks)
        yield from (part for part in pieces if _num_left(source, part, seen))
    elif _num_left(source, piece, seen):
        yield piece


def _blocks_alone(source: ViewSource, window: Window, seen: SeenIds) -> list[range]:
    """The numbers of the window's blocks that have rows left, if one has such a small remainder that Ray would join it with the next;
    otherwise an empty list."""
    if not seen.is_touched(window.epoch):
        return []
    small = CUT_AT * source.data.block_rows
    left = seen.unseen(window.epoch, source.plan.row_ids(window))
    if len(left) - left.sum() < source.data.block_rows - small:  # a few bad rows
        return []
    rests = {block.number: (seen.unseen(window.epoch, block.sample_id).sum(), len(block.sample_id)) for block in source.plan.blocks(window)}
    is_small = any(0 < rest <= small and rest < rows for rest, rows in rests.values())
    return [range(number, number + 1) for number, (rest, _) in rests.items() if rest] if is_small else []
