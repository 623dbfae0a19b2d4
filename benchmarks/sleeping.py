"""The stream with its stages replaced by sleeps: the same plan, the same graph of Ray Data, the same bytes, and no work.

What imports torch is imported by the driver alone, so that a dozen processes can sleep on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
from ray.actor import ActorHandle
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import RunConfig
from ray.train import ScalingConfig as RayScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.feeding import piece_of_row
from ray_sassl.orchestrate.pretraining.reading import BadRowsReporter, block_of_row, row_of_block
from ray_sassl.orchestrate.pretraining.sharing import StreamsOfWorkers, StreamStart
from ray_sassl.orchestrate.pretraining.stream import StreamSpec, stream_spec
from ray_sassl.orchestrate.runtime.session import in_group
from ray_sassl.pipeline import CropBlock, ViewSource
from ray_sassl.types import Arrays, view_name

if TYPE_CHECKING:
    from ray_sassl.cluster.plan import Counts, Measured
    from ray_sassl.config.schema import ExperimentConfig

NUM_ROWS = 8192
BLOCK_ROWS = 64
_SETTLE_S = 15.0


@dataclass(frozen=True)
class SleepingReads:
    """Stands for `ReadStage`: a block takes as long as a core takes to decode it.

    Attributes:
        images_per_s: Of one core.
    """

    images_per_s: float
    source: ViewSource | None = None

    def __call__(self, source: ViewSource, seen: SeenIds, on_bad: BadRowsReporter, run: str, exchange: object) -> SleepingReads:
        return SleepingReads(self.images_per_s, source)

    def crops(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        """Each plan's block as one row."""
        assert self.source is not None
        for row in range(len(batch["epoch"])):
            piece = piece_of_row(batch, row)
            assert piece is not None
            for block in self.source.plan.blocks(piece.window)[piece.blocks.start : piece.blocks.stop]:
                began = time.perf_counter()
                ids = block.sample_id if piece.rows is None else block.sample_id[piece.rows.start : piece.rows.stop]
                count = len(ids)
                views = [np.zeros((count, size, size, 3), np.uint8) for size in self.source.views.sizes_px]
                cropped = row_of_block(CropBlock(views, ids, block.epoch, np.ones(count, bool)))
                time.sleep(max(0.0, count / self.images_per_s - (time.perf_counter() - began)))
                yield cropped


def sleeping_style_actor(images_per_s: float) -> type:
    """Stands for `StyleActor`: a block takes as long as one actor takes to stylize and finish it."""

    class SleepingStyleActor:
        def __init__(self, *args: Any) -> None:
            pass

        def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
            for row in range(len(batch["epoch"])):
                began = time.perf_counter()
                block = block_of_row(batch, row)
                count = len(block.sample_id)
                views = {view_name(number): view for number, view in enumerate(block.views)}
                time.sleep(max(0.0, count / images_per_s - (time.perf_counter() - began)))
                yield {"sample_id": block.sample_id, "epoch": np.full(count, block.epoch, np.int64), **views}

    return SleepingStyleActor


def write_rows(folder: Path) -> str:
    """Shards whose rows are never decoded."""
    table = pa.table({"image": [b"x"] * NUM_ROWS, "label": [0] * NUM_ROWS})
    pq.write_table(table, folder / "train-0.parquet", row_group_size=512)
    return str(folder / "*.parquet")


def sleeping_config(path: str, counts: Counts, global_batch: int) -> ExperimentConfig:
    """The run of these counts: stylizers of a whole GPU each."""
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.experiments import load_experiment

    pool = max(1, counts.stylize)
    return apply_overrides(
        load_experiment("moco_cifar10_cpu"),
        [
            f"data.path={path}", f"data.block_rows={BLOCK_ROWS}", "data.shuffle_window=512", "train.epochs=60",
            f"train.global_batch={global_batch}",
            "stylize=color_statistics", "stream.layout=pool", f"stream.pool.min={pool}", f"stream.pool.max={pool}",
            "stream.pool.num_gpus=1",
            "stream.pool.node_group=stylize", f"scaling.num_workers={counts.trainers}", "scaling.use_gpu=true", "scaling.node_group=train",
            "evaluate.train=null", "evaluate.test=null",
        ],
    )  # fmt: skip


def images_per_s(config: ExperimentConfig, measured: Measured, folder: Path, *, cpus: float, steps: int) -> float:
    """Images a second of a run whose every stage sleeps, over so many steps; Ray must have been initialized.

    Args:
        cpus: Of all nodes that are wanted. Steps count from `_SETTLE_S` after these are up, when what starts on them has started.
    """
    from ray_sassl.runs.directory import prepare_run_dir
    from ray_sassl.runs.process import view_source

    assert measured.stylize_images_per_gpu_s is not None
    run_dir = str(folder / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.0, str(folder / "quarantine.jsonl"))
    factory = SleepingStream(
        stream_spec(config, view_source(config, run_dir)),
        control,
        index.num_rows,
        measured.decode_images_per_core_s,
        measured.stylize_images_per_gpu_s,
    )
    out = folder / "steps.txt"
    share = config.train.global_batch // config.scaling.num_workers
    trainer = DataParallelTrainer(
        _sleeping_worker,
        train_loop_config={
            "share": share,
            "step_s": share / measured.train_images_per_gpu_s,
            "cpus": cpus,
            "steps": steps,
            "out": str(out),
        },
        datasets=cast(Any, {"train": factory}),
        dataset_config=StreamsOfWorkers(),
        scaling_config=RayScalingConfig(
            num_workers=config.scaling.num_workers,
            use_gpu=True,
            resources_per_worker={"CPU": 1, "GPU": 1},
            label_selector=in_group(config.scaling.node_group),
        ),
        run_config=RunConfig(name="sleeping", storage_path=str(folder)),
    )
    trainer.fit()
    times = [float(line) for line in out.read_text().splitlines()]
    return steps * config.train.global_batch / (times[-1] - times[-1 - steps])


class BytesOfStages(ExecutionCallback):
    """Adds up what each stage has put into the object store; Ray Data makes the object itself, so the figures stand in the class."""

    moved: ClassVar[dict[str, float]] = {}

    def after_execution_succeeds(self, executor: Any) -> None:
        for operator in executor._topology:
            for part, stage in (("crops", "decode"), ("StyleActor", "stylize")):
                if part in operator.name:
                    self.moved[stage] = float(operator.metrics.bytes_task_outputs_generated)


@dataclass
class SleepingStream:
    """Called by Ray Train for the workers' data."""

    spec: StreamSpec
    control: ActorHandle
    num_rows: int
    decode_images_per_s: float
    stylize_images_per_s: float

    def __call__(self) -> StreamStart:
        stages = {
            "read_stage": SleepingReads(self.decode_images_per_s),
            "style_actor": sleeping_style_actor(self.stylize_images_per_s),
        }
        return StreamStart(self.spec, SeenIds(self.num_rows), 0, self.control, None, None, stages)


def _sleeping_worker(spec: dict[str, Any]) -> None:
    """Takes its share of each batch, sleeps, and waits for the others; the first one writes down when each step ended."""
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None
    is_first = ray.train.get_context().get_world_rank() == 0
    batches = iter(shard.iter_batches(batch_size=spec["share"], batch_format="numpy", prefetch_batches=2, drop_last=True))
    times: list[float] = []
    counts_from: float | None = None
    is_last = False
    while not is_last:
        next(batches)
        began = time.perf_counter()
        if is_first and counts_from is None and ray.cluster_resources().get("CPU", 0.0) >= spec["cpus"]:
            counts_from = began + _SETTLE_S
        is_last = counts_from is not None and sum(at >= counts_from for at in times) >= spec["steps"]
        is_last = broadcast_from_rank_zero(is_last)
        time.sleep(max(0.0, spec["step_s"] - (time.perf_counter() - began)))
        times.append(time.perf_counter())
    if is_first:
        Path(spec["out"]).write_text("".join(f"{moment}\n" for moment in times))
