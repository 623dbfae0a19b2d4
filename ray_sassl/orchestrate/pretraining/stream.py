"""The flow of `pipeline` as one Ray Data graph over all epochs: tasks that read, decode and crop, then the stylizer.

Its source is the plan: one row per task, so reading is the first stage and nothing is listed or opened twice. It is planned while the
stream runs (`feeding`). Because all epochs are one execution, actors are started once. With a pool, a plan's block is passed between stages
as a single row, so that re-batching cannot separate style partners.

This module imports torch only inside the stages that stylize: Ray's processes that schedule the stream import this module too, and torch
would cost each of them seconds and hundreds of megabytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.dealing import CUT_AT, Share
from ray_sassl.orchestrate.pretraining.exchange import make_exchange
from ray_sassl.orchestrate.pretraining.feeding import PlanDatasource, PlanFeeder
from ray_sassl.orchestrate.pretraining.reading import BadRowsReporter, ReadStage, block_of_row, stage_times
from ray_sassl.orchestrate.pretraining.store_limit import Stage, StoreLimit, set_stages
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.orchestrate.runtime.metrics import count_images, set_queue
from ray_sassl.orchestrate.runtime.private import ExecutionCallback
from ray_sassl.orchestrate.runtime.session import in_group
from ray_sassl.orchestrate.runtime.weights import receive_weights
from ray_sassl.pipeline import StylizeBlock, Teach, ViewSource, finish_block, one_at_a_time
from ray_sassl.types import Arrays

if TYPE_CHECKING:
    from ray_sassl.config.schema import ExperimentConfig

_BLOCKS_AT_ONCE = 2
_STEP_PAUSE_S = 0.025
_LOOK_EVERY_S = 1.0
_RUN = "ray_sassl.runs.directory"
"""The key of the run's name in the DataContext."""


class LoopThrottle(ExecutionCallback):
    """Keeps Ray Data's scheduling loop from spinning, and checks the stylizers' queue regularly.

    While finished blocks wait for a slower consumer, which is most of the time in training, Ray 2.60's loop spins without waiting: it took
    a quarter of a core here. Each step takes all blocks that are ready, so a short pause between steps only delays them.
    """

    def __init__(self) -> None:
        self._looked_at = float("-inf")

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_STEP_PAUSE_S)
        now = time.monotonic()
        if now - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = now
            _look_at_queue(executor)


def _look_at_queue(executor: Any) -> None:
    """Export how many blocks wait for stylizers, and how many stylizers there are."""
    context: DataContext = executor._data_context
    for operator, state in executor._topology.items():
        if StyleActor.__name__ in operator.name:
            actors = operator.get_actor_info()
            counts = {"running": actors.running, "pending": actors.pending, "restarting": actors.restarting}
            set_queue(str(context.get_config(_RUN, "")), state.total_enqueued_input_blocks(), counts)


@dataclass(frozen=True)
class StreamSpec:
    """Everything that determines the stream, without classes that import torch.

    Attributes:
        source: The views and their data.
        epochs: Number of epochs.
        layout: `light`, `fused` or `pool`; see `StreamConfig.layout`. `light` is `fused` when nothing needs torch.
        num_cpus: CPUs of one task.
        group: The group of nodes for the tasks, or None.
        cpus_per_worker: CPUs that a training worker holds.
        pool: Arguments of `ActorPoolStrategy`.
        actor_num_cpus, actor_num_gpus: CPUs and GPUs of each actor of the pool.
        actor_group: The group of nodes for the pool, or None.
        config_yaml: The whole config, for the stages that stylize.
        num_targets: Width of a teacher's features; 0 without one.
        run: The run's name, for its metrics.
    """

    source: ViewSource
    epochs: float
    layout: str
    num_cpus: float
    group: str | None
    cpus_per_worker: float
    pool: dict[str, int]
    actor_num_cpus: float
    actor_num_gpus: float
    actor_group: str | None
    config_yaml: str
    run: str
    num_targets: int = 0

    def num_streams(self, num_workers: int) -> int:
        """How many streams feed so many workers: one each, or as many as can have equal numbers of the pool's actors."""
        return math.gcd(num_workers, *self.pool.values()) if self.layout == "pool" else num_workers


def stream_spec(config: ExperimentConfig, source: ViewSource) -> StreamSpec:
    """The spec of the config's stream."""
    from ray_sassl.config.files import to_yaml

    pool = config.stream.pool
    sizes = {"min_size": pool.min, "max_size": pool.max, "initial_size": pool.initial or pool.min}
    return StreamSpec(
        source=source,
        epochs=config.train.epochs,
        layout=layout_of(config),
        num_cpus=config.stream.num_cpus,
        group=config.stream.node_group,
        cpus_per_worker=config.scaling.cpus_per_worker,
        pool={"size": pool.min} if pool.min == pool.max else sizes,
        actor_num_cpus=pool.num_cpus,
        actor_num_gpus=pool.num_gpus,
        actor_group=pool.node_group,
        config_yaml=to_yaml(config),
        run=storage.name_of(storage.parent(source.index_path)),
        num_targets=config.method.num_targets,
    )


def layout_of(config: ExperimentConfig) -> str:
    """The configured layout; `auto` is a pool if the stylizer or a teacher uses GPUs, and `fused` is `light` if nothing needs torch."""
    is_plain = config.stylize.is_identity and not config.method.num_targets
    layout = config.stream.layout
    if layout == "auto":
        layout = "pool" if not is_plain and config.stream.pool.num_gpus > 0 else "fused"
    return "light" if layout == "fused" and is_plain and config.views.backend_on("cpu") == "opencv" else layout


def execution_options() -> ExecutionOptions:
    """Blocks come out in the plan's order, which a resumed run relies on."""
    return ExecutionOptions(preserve_order=True)


def make_stream(
    spec: StreamSpec,
    seen: SeenIds,
    control: ActorHandle,
    keeper: ActorHandle | None = None,
    *,
    share: Share | None = None,
    exchange: ActorHandle | None = None,
    near: str | None = None,
    read_stage: Callable[..., Any] = ReadStage,
    style_actor: type | None = None,
) -> ray.data.Dataset:
    """All epochs' views as rows of `view_0`, `view_1`, ..., `sample_id` and `epoch`, in blocks of about `data.block_rows`.

    Args:
        seen: Samples to leave out, because the run has seen them or they are known to be bad.
        control: The control actor, which gets the rows that cannot be used.
        keeper: The actor with the stylizer's weights for nodes without them.
        share: The stream's share of the plan and of the cluster, if it is one of several.
        exchange: Their common exchange; by default one of its own.
        near: The node where tasks run while it has free CPUs, unless they have a group of nodes.
        read_stage: Makes a `ReadStage`, or its replacement in a simulation.
        style_actor: `StyleActor`, or its replacement in a simulation.
    """
    context = DataContext.get_current()
    context.execution_options = execution_options()
    context.set_config(_RUN, spec.run)
    num_streams = 1 if share is None else share.count
    set_stages(context, stages_of(spec, share), num_streams)
    for callback in (PlanFeeder, StoreLimit, LoopThrottle):
        if callback not in context.custom_execution_callback_classes:
            context.custom_execution_callback_classes.append(callback)
    # Ray cuts blocks that are larger than this, so every block of views becomes one of Ray's, neither merged nor split.
    context.target_max_block_size = max(1, int(CUT_AT * block_bytes(spec.source, spec.num_targets)))
    # Without `num_cpus` it would take a whole CPU, even if other stages take less, and never start if no node has one left.
    where = nodes_for_tasks(spec)
    datasource = PlanDatasource(spec.source, spec.epochs, seen, share)
    placed = where  # the stage that is fused with this one inherits it
    if near is not None and not spec.group:
        placed = {"scheduling_strategy": NodeAffinitySchedulingStrategy(near, soft=True, _spill_on_unavailable=True)}
    plan = ray.data.read_datasource(datasource, num_cpus=spec.num_cpus, ray_remote_args=placed, override_num_blocks=1)
    exchange = exchange or make_exchange(spec.source, spec.num_cpus, where, epochs=spec.epochs, seen=seen)
    reading = read_stage(spec.source, seen, BadRowsReporter(control), spec.run, exchange)
    match spec.layout:
        case "light":
            return plan.map_batches(cast(Any, reading.views), batch_size=None, num_cpus=spec.num_cpus, **where)
        case "fused":
            fused = FusedStage(reading, spec.config_yaml, keeper)
            return plan.map_batches(cast(Any, fused), batch_size=None, num_cpus=spec.num_cpus, **where)
        case "pool":
            group = in_group(spec.actor_group)
            crops = plan.map_batches(cast(Any, reading.crops), batch_size=None, num_cpus=spec.num_cpus, **where)
            return crops.map_batches(
                cast(Any, style_actor or StyleActor),
                fn_constructor_args=(spec.source, spec.config_yaml, spec.actor_num_cpus, spec.actor_num_gpus, keeper, spec.run, control),
                batch_size=1 if spec.actor_num_gpus else None,  # a block is one row, and Ray needs a number if there are GPUs
                num_cpus=spec.actor_num_cpus,
                num_gpus=spec.actor_num_gpus,
                compute=pool_strategy(spec, num_streams),
                # Ray does not fuse stages that request different resources, so one byte of memory prevents it from fusing these two if they
                # take the same share of a CPU: then only the actors would decode.
                memory=1,
                **cast(dict[str, Any], {"label_selector": group} if group else {}),
            )
    raise AssertionError(spec.layout)


def pool_strategy(spec: StreamSpec, num_streams: int = 1) -> ActorPoolStrategy:
    """The pool of one of the streams of a spec. An actor with a GPU has two blocks, so that the next one is uploaded while one is stylized;
    never more, so that its memory is bounded."""
    both: dict[str, Any] = {"max_concurrent_calls_per_actor": _BLOCKS_AT_ONCE, "enable_true_multi_threading": True}
    sizes = {name: size // num_streams for name, size in spec.pool.items()}
    return ActorPoolStrategy(**cast(Any, sizes), **(both if spec.actor_num_gpus else {}))


def nodes_for_tasks(spec: StreamSpec) -> dict[str, Any]:
    """Ray's options for the nodes of the tasks."""
    return {"label_selector": in_group(spec.group)} if spec.group else {}


def stages_of(spec: StreamSpec, share: Share | None) -> list[Stage]:
    """Where the stages of the stream run, and what training workers take there."""
    each = spec.cpus_per_worker
    most = each * share.num_workers if share is not None and share.num_workers else math.inf
    stages = [Stage(spec.group, per_gpu=each, most_taken=most)]
    if spec.layout == "pool":
        actors = Stage(spec.actor_group, "GPU") if spec.actor_num_gpus else Stage(spec.actor_group, per_gpu=each, most_taken=most)
        stages.append(actors)
    return stages


def block_bytes(source: ViewSource, num_targets: int = 0) -> int:
    """Bytes of a plan's block of views, with so many features of a teacher for each image."""
    return source.data.block_rows * (sum(size_px**2 for size_px in source.views.sizes_px) * 3 + 2 * num_targets)


class FusedStage:
    """All stages in one task, with the stylizer in the task's process."""

    def __init__(self, reading: ReadStage, config_yaml: str, keeper: ActorHandle | None) -> None:
        self.reading, self.config_yaml, self.keeper = reading, config_yaml, keeper

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        stylize_block = _stylize(self.config_yaml, "cpu", 1, self.keeper)
        teach = _teach(self.config_yaml, storage.parent(self.reading.source.index_path), "cpu", 1)
        for block in self.reading.blocks(batch):
            times = stage_times(self.reading.on_bad.control)
            yield finish_block(self.reading.source, block, stylize_block, times=times, teach=teach)
            count_images(self.reading.run, "stylize", int(block.keep.sum()))


class StyleActor:
    """One actor of the pool: the stylizer with its weights, then the color operations, then the teacher's features if there is one.

    Two threads may call it, see `pool_strategy`; one at a time is stylized, and one at a time seen by the teacher.
    """

    def __init__(
        self,
        source: ViewSource,
        config_yaml: str,
        num_cpus: float,
        num_gpus: float,
        keeper: ActorHandle | None,
        run: str,
        control: ActorHandle,
    ) -> None:
        self._source, self._run, self._times = source, run, stage_times(control)
        self._device_type = device_type(num_gpus)
        self._stylize = _stylize(config_yaml, self._device_type, int(num_cpus), keeper)
        teach = _teach(config_yaml, storage.parent(source.index_path), self._device_type, int(num_cpus))
        self._teach = one_at_a_time(teach, counts_waiting=False)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        for row in range(len(batch["epoch"])):
            block = block_of_row(batch, row)
            yield finish_block(self._source, block, self._stylize, self._device_type, self._times, self._teach)
            count_images(self._run, "stylize", int(block.keep.sum()))


@lru_cache(maxsize=1)
def _stylize(config_yaml: str, device_type: str, num_threads: int, keeper: ActorHandle | None) -> StylizeBlock | None:
    """The config's style augmentation, built once per process."""
    from ray_sassl.config.files import from_yaml
    from ray_sassl.runs.process import build_stylize_block

    config = from_yaml(config_yaml)
    receive_weights(config.stylize, keeper)
    return build_stylize_block(config, device_type, num_threads)


@lru_cache(maxsize=1)
def _teach(config_yaml: str, run_dir: str, device_type: str, num_threads: int) -> Teach | None:
    """The run's teacher, read once per process."""
    from ray_sassl.config.files import from_yaml
    from ray_sassl.runs.teacher import build_teacher

    return build_teacher(from_yaml(config_yaml), run_dir, device_type, num_threads)
