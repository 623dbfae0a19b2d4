"""One stream for each training worker, so that none waits for what another one needs, and none deals for all.

A worker's stream is an execution of Ray Data of its own, with its share of the plan (`dealing`) and of the cluster (`store_limit`). The
process that schedules it runs on the worker's node and ends with the worker. Where stylizers are a pool of actors, workers that cannot have
equal numbers of them share a stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.data import DataIterator
from ray.train import DataConfig

from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.dealing import Share
from ray_sassl.orchestrate.pretraining.exchange import make_exchange
from ray_sassl.orchestrate.pretraining.stream import StreamSpec, make_stream, nodes_for_tasks
from ray_sassl.pipeline import without
from ray_sassl.train.checkpoint_folder import BadCheckpointError, newest_seen
from ray_sassl.types import Arrays

if TYPE_CHECKING:
    from ray_sassl.train.agreement import Agreement  # imports torch, which the processes that schedule need not load


@dataclass(frozen=True)
class StreamStart:
    """What the streams of one start of the workers have in common.

    Attributes:
        seen: Samples to leave out, because the run has seen them or they are known to be bad.
        num_bad: Rows that are known to be bad.
        control: The control actor, which gets the rows that cannot be used.
        keeper: The actor with the stylizer's weights for nodes without them.
        exchange: Of the rows of large windows, if there are any.
        stages: Replacements of the stream's stages, in a simulation.
    """

    spec: StreamSpec
    seen: SeenIds
    num_bad: int
    control: ActorHandle
    keeper: ActorHandle | None
    exchange: ActorHandle | None
    stages: dict[str, Any] = field(default_factory=dict)

    def stream(self, share: Share, near: str | None = None) -> ray.data.Dataset:
        """The stream of one share."""
        return make_stream(self.spec, self.seen, self.control, self.keeper, share=share, exchange=self.exchange, near=near, **self.stages)


class StreamFactory:
    """Called by Ray Train at every start of its workers, so that they continue from the newest checkpoint.

    It chooses the checkpoint for all of them and tells the control actor, so that the stream and every worker start from the same one, even
    if a worker of the previous start is still writing. It reads the samples that the checkpoint has seen, but not the weights: if workers
    find the weights damaged, the control actor refuses the checkpoint, and the next start uses the one before.

    Args:
        run_dir: The run directory with the checkpoints.
        control: The control actor, which gets the rows that cannot be used, and knows those of earlier starts.
        keeper: The actor with the stylizer's weights for nodes without them.
        num_workers: Workers at most.
    """

    def __init__(self, spec: StreamSpec, run_dir: str, control: ActorHandle, keeper: ActorHandle | None, num_workers: int) -> None:
        self._spec, self._run_dir, self._control, self._keeper, self._num_workers = spec, run_dir, control, keeper, num_workers

    def __call__(self) -> StreamStart:
        refused, known_bad = ray.get([self._control.refused.remote(), self._control.bad_ids.remote()])
        path, seen = None, SeenIds(self._spec.source.index.num_rows)
        try:
            path, seen = newest_seen(self._run_dir, refused) or (path, seen)
        except BadCheckpointError as error:
            ray.get(self._control.fail.remote(str(error)))  # workers ask for it before they do anything
        ray.get(self._control.start_from.remote(path))
        spec = self._spec
        seen = without(seen, known_bad)
        exchange = make_exchange(spec.source, spec.num_cpus, nodes_for_tasks(spec), self._num_workers, spec.epochs, seen)
        return StreamStart(spec, seen, len(known_bad), self._control, self._keeper, exchange)


class StreamsOfWorkers(DataConfig):
    """Gives each worker its stream, or its part of a stream that several workers share."""

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        ((name, start),) = datasets.items()
        num_streams = start.spec.num_streams(world_size)
        shares = [Share(number, num_streams, start.num_bad, world_size) for number in range(num_streams)]
        if num_streams == world_size:
            return [{name: WorkerStream(start, share)} for share in shares]
        each = world_size // num_streams
        parts = [(share, part) for share in shares for part in start.stream(share).streaming_split(each, equal=True)]
        # Train ends the processes of streams that it knows, so a stream of all workers is not wrapped.
        return [{name: part if num_streams == 1 else WorkerStream(start, share, part)} for share, part in parts]


@dataclass(frozen=True)
class WorkerStream:
    """What a worker gets of one of several streams.

    Attributes:
        part: Its part of a stream that it shares with other workers; by default it has the stream for itself.
    """

    start: StreamStart
    share: Share
    part: DataIterator | None = None

    def iter_batches(self, **options: Any) -> Iterable[Any]:
        """As of Ray's datasets; called in the worker."""
        part = self.part
        if part is None:
            near = ray.get_runtime_context().get_node_id()
            part = self.start.stream(self.share, near).streaming_split(1, equal=True)[0]
        return part.iter_batches(**options)

    def sure_steps(self, rows: int, num_workers: int) -> int:
        """How many steps every worker's stream fills, if each step takes so many rows of it, however many bad rows are allowed."""
        source, seen = self.start.spec.source, self.start.seen
        num_rows, epochs = source.index.num_rows, math.ceil(self.start.spec.epochs)
        left = epochs * num_rows - sum(seen.count(epoch) for epoch in seen.touched() if epoch < epochs)
        most_bad = epochs * (math.ceil(source.data.max_bad_fraction * num_rows) + 1)
        return max(0, (left // num_workers - most_bad) // rows)


def whole_steps(batches: Iterator[Arrays], num_parts: int, sure: int, agreement: Agreement) -> Iterator[Arrays]:
    """The batches of the steps that all ranks' streams can fill, of so many parts each: bad rows make some streams a little shorter.

    Args:
        sure: Steps that every stream fills; the ranks ask each other about the later ones.
        agreement: Of these ranks, with one flag.
    """
    for step in count():
        parts = list(islice(batches, num_parts))
        is_short = len(parts) < num_parts
        if any(agreement.exchange([is_short], at_once=True)) if step >= sure else is_short:
            return
        while parts:
            yield parts.pop(0)
