"""The rows of a large window, read once and dealt to the tasks that make its blocks.

A window of whole Parquet row groups may be too large for one task's memory, and its blocks need rows of every group. So tasks read shares
of its groups and cut them into one slice for each part of the window, in Ray's object store, which moves them to disk when it is full. One
window is held in a cluster at a time, or two where one follows another, however many tasks work on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import ray
import ray.exceptions
from ray.actor import ActorHandle

from ray_sassl.data import Rows
from ray_sassl.data.plan import Window
from ray_sassl.data.reading import read_runs
from ray_sassl.pipeline import ViewSource

_KEPT_PARTS = 4
"""Parts that are kept after they were asked for, for tasks that are repeated and for blocks that are tasks of their own; one more for each
further stream."""
_STALE = 256
"""Parts that nobody asks for during so many requests of each stream are forgotten: they were seen before, or read for a repeated task."""
_TRIES = 3

Slices = tuple[ray.ObjectRef, ...]


def make_exchange(source: ViewSource, num_cpus: float, where: dict[str, Any], num_streams: int = 1) -> ActorHandle | None:
    """The exchange for the streams of a run; None if each window is the work of one task.

    Args:
        num_cpus: CPUs of a task that reads.
        where: Ray's options for the nodes of these tasks.
    """
    return cast(Any, Exchange).remote(source, {"num_cpus": num_cpus, **where}, num_streams) if source.plan.has_parts else None


def part_reader(exchange: ActorHandle | None, source: ViewSource, window: Window, wanted: range) -> Callable[[], Rows] | None:
    """What reads the rows of the wanted blocks through the exchange; None if the task reads them itself."""
    if exchange is None or len(parts := source.plan.parts(window)) == 1:
        return None
    part = next(number for number, blocks in enumerate(parts) if wanted.start in blocks)
    assert wanted.stop <= parts[part].stop, "a task's blocks are of one part"
    return partial(_rows_of, exchange, window, part)


def _rows_of(exchange: ActorHandle, window: Window, part: int) -> Rows:
    for trial in range(_TRIES):
        try:
            return Rows.joined(ray.get(list(ray.get(exchange.slices.remote(window, part, again=trial > 0)))))
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        except ray.exceptions.RayError:  # the node of the exchange, or all copies of a slice, were lost
            if trial == _TRIES - 1:
                raise
    raise AssertionError


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Exchange:
    """Knows where the slices of the windows at work are, and has a window read when its first part is asked for."""

    def __init__(self, source: ViewSource, options: dict[str, Any], num_streams: int = 1) -> None:
        self._source, self._options, self._num_streams = source, options, num_streams
        self._read = ray.remote(read_share)
        self._requests = 0
        self._waiting: dict[tuple[int, int, int], tuple[Slices, int]] = {}
        self._asked: OrderedDict[tuple[int, int, int], Slices] = OrderedDict()

    def slices(self, window: Window, part: int, again: bool = False) -> Slices:
        """The slices of the part, one of each share of the window.

        Args:
            again: The ones of the last time are lost.
        """
        self._requests += 1
        key = (window.epoch, window.number, part)
        if again:
            self._asked.pop(key, None)
        if key not in self._asked:
            if key not in self._waiting:
                for number, slices in enumerate(self._read_window(window)):
                    self._waiting[window.epoch, window.number, number] = slices, self._requests
            self._asked[key], _ = self._waiting.pop(key)
        self._asked.move_to_end(key)
        while len(self._asked) > _KEPT_PARTS + self._num_streams - 1:
            self._asked.popitem(last=False)
        for stale in [stale for stale, (_, since) in self._waiting.items() if self._requests - since > _STALE * self._num_streams]:
            del self._waiting[stale]
        return self._asked[key]

    def _read_window(self, window: Window) -> list[Slices]:
        """The slices of each part."""
        num_parts = len(self._source.plan.parts(window))
        shares = np.array_split(np.arange(len(window.pieces)), num_parts)
        read = self._read.options(**self._options, num_returns=num_parts)
        cut = [read.remote(self._source, window, int(share[0]), int(share[-1]) + 1) for share in shares if len(share)]
        return list(zip(*cut, strict=True))


def read_share(source: ViewSource, window: Window, first: int, stop: int) -> list[Rows]:
    """The rows of the window's pieces from number `first` to `stop`, cut into one slice for each part of the window."""
    plan = source.plan
    rows = read_runs(source.index, *plan.piece_runs(window.pieces[first:stop]))
    blocks = plan.blocks(window)
    slices = []
    for part in plan.parts(window):
        ids = np.concatenate([blocks[number].sample_id for number in part])
        slices.append(rows.take(ids[np.isin(ids, rows.sample_id)]))
    return slices
