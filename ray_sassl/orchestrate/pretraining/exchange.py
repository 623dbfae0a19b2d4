"""The rows of a large window, read once and dealt to the tasks that make its blocks.

A window of whole Parquet row groups may be too large for one task's memory, and its blocks need rows of every group. So tasks read shares
of its groups and cut them into one slice for each part of the window, in Ray's object store, which moves them to disk when it is full. The
next window is read once half of the parts of one have been asked for, if the cluster's object stores have room for two; so one or two
windows are held in a cluster at a time, however many tasks work on them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import dropwhile
from typing import Any, cast

import numpy as np
import ray
import ray.exceptions
from ray.actor import ActorHandle

from ray_sassl.data import Rows
from ray_sassl.data.plan import Window
from ray_sassl.data.reading import read_runs
from ray_sassl.data.seen import SeenIds
from ray_sassl.pipeline import ViewSource, windows

_KEPT_PARTS = 4
"""Parts that are kept after they were asked for, for tasks that are repeated and for blocks that are tasks of their own; one more for each
further stream."""
_STALE = 256
"""Parts that nobody asks for during so many requests of each stream are forgotten: they were seen before, or read for a repeated task."""
_TRIES = 3
_STORES_SHARE = 0.4
"""Two windows at once may take so much of all object stores; views have as much (`store_limit`)."""

Slices = tuple[ray.ObjectRef, ...]


def make_exchange(
    source: ViewSource, num_cpus: float, where: dict[str, Any], num_streams: int = 1, epochs: float = 0, seen: SeenIds | None = None
) -> ActorHandle | None:
    """The exchange for the streams of a run; None if each window is the work of one task.

    Args:
        num_cpus: CPUs of a task that reads. With fewer than a decoding task has there would be more tasks at once than Ray keeps processes.
        where: Ray's options for the nodes of the tasks that read.
        epochs, seen: The windows that will be asked for, as of `pipeline.windows`; by default none is read ahead.
    """
    if not source.plan.has_parts:
        return None
    return cast(Any, Exchange).remote(source, {"num_cpus": num_cpus, **where}, num_streams, epochs, seen)


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

    def __init__(
        self, source: ViewSource, options: dict[str, Any], num_streams: int = 1, epochs: float = 0, seen: SeenIds | None = None
    ) -> None:
        self._source, self._options, self._num_streams = source, options, num_streams
        self._order = windows(source, epochs, seen or SeenIds(source.index.num_rows))
        self._newest = -1, -1
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
                self._read_window(window)
            self._asked[key], _ = self._waiting.pop(key)
            self._read_ahead(window)
        self._asked.move_to_end(key)
        while len(self._asked) > _KEPT_PARTS + self._num_streams - 1:
            self._asked.popitem(last=False)
        for stale in [stale for stale, (_, since) in self._waiting.items() if self._requests - since > _STALE * self._num_streams]:
            del self._waiting[stale]
        return self._asked[key]

    def _read_window(self, window: Window) -> None:
        """Begin to read the slices of each part."""
        num_parts = len(self._source.plan.parts(window))
        shares = np.array_split(np.arange(len(window.pieces)), num_parts)
        read = self._read.options(**self._options, num_returns=num_parts)
        cut = [read.remote(self._source, window, int(share[0]), int(share[-1]) + 1) for share in shares if len(share)]
        for number, slices in enumerate(zip(*cut, strict=True)):
            self._waiting[window.epoch, window.number, number] = slices, self._requests
        self._newest = max(self._newest, _place(window))

    def _read_ahead(self, window: Window) -> None:
        """Begin to read the window after this one, if this one is the last that was read, and half of it was asked for."""
        parts = self._source.plan.parts(window)
        left = sum((*_place(window), number) in self._waiting for number in range(len(parts)))
        if _place(window) != self._newest or 2 * left > len(parts) or not self._has_room_for_two():
            return
        later = dropwhile(lambda other: _place(other) <= self._newest or len(self._source.plan.parts(other)) == 1, self._order)
        if (following := next(later, None)) is not None:
            self._read_window(following)

    def _has_room_for_two(self) -> bool:
        return 2 * self._source.plan.mean_window_bytes <= _STORES_SHARE * ray.cluster_resources().get("object_store_memory", 0)


def _place(window: Window) -> tuple[int, int]:
    return window.epoch, window.number


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
