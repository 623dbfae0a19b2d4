"""The plan as Ray Data's source, planned a little ahead of the stream.

Ray Data requires every read task of a source before it starts the first. Here it only gets the first one; a callback of its scheduling loop
adds the others to the operator that hands them out, while a thread plans the next ones. So all epochs are one execution, with one set of
actors, and the time to the first block depends neither on their number nor on the place where a run resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from ray_sassl.data.plan import Window
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.dealing import Piece, Share, pieces
from ray_sassl.orchestrate.runtime.private import BlockEntry, ExecutionCallback, InputDataBuffer, RefBundle
from ray_sassl.pipeline import ViewSource

MAX_WAITING = 1024
"""Maximum number of tasks that are planned but not started."""
KEPT = 4096
"""Started tasks that are remembered, so that Ray can repeat them if a node is lost with their results. Results of more tasks never wait at
the same time: that would be as many tasks' images."""
KEPT_STATS = 10_000
_AT_A_TIME = MAX_WAITING // 4
_PLACES = "first_block", "stop_block", "first_row", "stop_row"


def piece_of_row(batch: dict[str, np.ndarray], row: int) -> Piece | None:
    """The piece in a row of the source; None if a run has nothing left to do."""
    pieces = tuple(np.asarray(batch["pieces"][row]).tolist())
    if not pieces:
        return None
    epoch, number, num_rows = (int(batch[name][row]) for name in ("epoch", "number", "num_rows"))
    first, stop, first_row, stop_row = (int(batch[name][row]) for name in _PLACES)
    return Piece(Window(epoch, number, pieces, num_rows), range(first, stop), range(first_row, stop_row) if stop_row else None)


def _rows(facts: dict[str, int], pieces: np.ndarray) -> Iterable[pa.Table]:
    """The source's only row for a piece."""
    columns = {name: [value] for name, value in facts.items()}
    return [pa.table(columns | {"pieces": pa.array([pieces], pa.list_(pa.int32()))})]


def _read_task(piece: Piece) -> ReadTask:
    window, blocks, rows = piece
    facts = {"epoch": window.epoch, "number": window.number, "num_rows": window.num_rows}
    rows = rows or range(0)
    facts |= dict(zip(_PLACES, (blocks.start, blocks.stop, rows.start, rows.stop), strict=True))
    pieces = np.array(window.pieces, np.int32)
    metadata = BlockMetadata(num_rows=1, size_bytes=pieces.nbytes + 40, input_files=None, exec_stats=None)
    return ReadTask(partial(_rows, facts, pieces), metadata)


class PlanDatasource(Datasource):
    """The plan, or one stream's share of it; Ray gets its first task, and `PlanFeeder` adds the others."""

    def __init__(self, source: ViewSource, epochs: float, seen: SeenIds, share: Share | None = None) -> None:
        super().__init__()
        self._source, self._epochs, self._seen, self._share = source, epochs, seen, share
        self._first = _read_task(next(self._pieces(), Piece(Window(0, 0, (), 0), range(0))))

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        return [self._first]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def further_tasks(self) -> Iterator[ReadTask]:
        """All tasks but the first, in order."""
        return map(_read_task, islice(self._pieces(), 1, None))

    def _pieces(self) -> Iterator[Piece]:
        return pieces(self._source, self._epochs, self._seen, self._share)


class PlanFeeder(ExecutionCallback):
    """Adds tasks to the sources of an execution as they are used up, and removes statistics of each that Ray would keep forever."""

    def __init__(self) -> None:
        self._feeds: list[_Feed] = []

    def before_execution_starts(self, executor: Any) -> None:
        found = ((operator, state, _plan_of(operator)) for operator, state in executor._topology.items())
        self._feeds = [_Feed(operator, state, plan) for operator, state, plan in found if plan is not None]

    def on_execution_step(self, executor: Any) -> None:
        for feed in self._feeds:
            feed.fill()
        for operator in executor._topology if self._feeds else ():
            stats = getattr(operator, "_output_blocks_stats", [])
            if len(stats) > 2 * KEPT_STATS:
                del stats[:-KEPT_STATS]


def _plan_of(operator: Any) -> PlanDatasource | None:
    """The plan whose tasks the operator hands out, or None for another operator."""
    if not isinstance(operator, InputDataBuffer):
        return None
    sources = (getattr(logical, "datasource", None) for logical in operator._logical_operators)
    return next((source for source in sources if isinstance(source, PlanDatasource)), None)


class _Feed:
    """One source of an execution: its operator, and the thread that plans."""

    def __init__(self, operator: Any, state: Any, plan: PlanDatasource) -> None:
        self._operator, self._state = operator, state
        self._tasks = plan.further_tasks()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._planned = self._thread.submit(self._plan)
        self._is_at_end = False
        operator._is_execution_marked_finished = False  # Ray marks it when it is made, since all of its input usually exists
        operator.has_execution_finished = self._is_finished

    def fill(self) -> None:
        """Add planned tasks if there is room; does not wait."""
        operator = self._operator
        waiting = len(self._state.output_queue) + len(operator._input_data) - operator._input_data_index
        if self._is_at_end or waiting + _AT_A_TIME > MAX_WAITING or not self._planned.done():
            return
        bundles = self._planned.result()
        for bundle in bundles:
            operator.metrics.on_input_received(bundle)
        operator._input_data += bundles
        operator._estimated_num_output_bundles += len(bundles)
        if (num_old := operator._input_data_index - KEPT) > 0:
            del operator._input_data[:num_old]
            operator._input_data_index -= num_old
        self._is_at_end = len(bundles) < _AT_A_TIME
        if self._is_at_end:
            self._thread.shutdown(wait=False)
        else:
            self._planned = self._thread.submit(self._plan)

    def _plan(self) -> list[Any]:
        return [_bundle(task) for task in islice(self._tasks, _AT_A_TIME)]

    def _is_finished(self) -> bool:
        return self._is_at_end or self._operator._is_execution_marked_finished


def _bundle(task: ReadTask) -> Any:
    """The task in the form in which Ray's planner gives it to the reading operator."""
    return RefBundle((BlockEntry(cast(Any, ray.put(task)), task.metadata),), owns_blocks=False, schema=None)
