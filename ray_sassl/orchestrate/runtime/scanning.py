"""The shards of a large data set are scanned for its index by tasks of the cluster; those of a small one by threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import ray

from ray_sassl.data import DataConfig
from ray_sassl.data.ahead import ahead
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, in_threads
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.results import result_of

FEW_SHARDS = 64
"""So many shards are scanned here: that takes less time than to start tasks."""
_THREADS = 16
_SHARDS_AT_ONCE = 16
_WAITING_TASKS_PER_CPU = 4

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Scanning:
    """Scans shards, and shows how far it is.

    Args:
        session: Connects to Ray where there are many shards; not given: Ray is connected.
        show_progress: Whether to draw a progress bar.
    """

    def __init__(self, session: Callable[[], object] | None = None, *, show_progress: bool = True) -> None:
        self._session, self._show_progress = session, show_progress

    def __call__(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
        if len(items) < FEW_SHARDS:
            yield from in_threads(_THREADS)(function, items)
            return
        if self._session is not None:
            self._session()
        with progress_bar("indexing", len(items), is_shown=self._show_progress) as advance:
            for result in _in_tasks(function, items):
                yield result
                advance(1)


def _in_tasks(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    held = ray.put(function)
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    at_once = max(1, min(_SHARDS_AT_ONCE, len(items) // (_WAITING_TASKS_PER_CPU * num_cpus)))
    portions = [items[first : first + at_once] for first in range(0, len(items), at_once)]
    for ref in ahead(lambda portion: _scan_task.remote(held, portion), portions, _WAITING_TASKS_PER_CPU * num_cpus):
        yield from result_of(ref)


@ray.remote(num_cpus=1)
def _scan_task(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return list(in_threads(_THREADS)(function, items))


def index_of(config: DataConfig, *, show_progress: bool = True) -> Index:
    """The index of the data set, for a command that is connected to Ray.

    Raises:
        UsageError: there are no rows, or the files do not match the config.
    """
    return build_index(config, each=Scanning(show_progress=show_progress))
