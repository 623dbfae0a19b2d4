"""The function in each Ray Train worker: `runs.process.train_process`, fed by this rank's shard of the stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle

from ray_sassl.config.files import from_yaml
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import NoteHandler, Requests
from ray_sassl.orchestrate.pretraining.sharing import WorkerStream, whole_steps
from ray_sassl.orchestrate.pretraining.stream import layout_of
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.orchestrate.runtime.metrics import TrainingMetrics
from ray_sassl.orchestrate.runtime.private import get_train_context
from ray_sassl.orchestrate.runtime.reservation import note_reservation
from ray_sassl.process.ending import told
from ray_sassl.process.errors import UsageError
from ray_sassl.process.stages import Spent
from ray_sassl.runs.process import train_process
from ray_sassl.train.agreement import Agreement
from ray_sassl.train.checkpoint import Checkpoint, read_checkpoint_once
from ray_sassl.train.checkpoint_folder import BadCheckpointError
from ray_sassl.train.config import share_of_batch
from ray_sassl.train.speed import Speed, Stream
from ray_sassl.train.watchdog import Beat
from ray_sassl.types import Arrays


@dataclass
class RayContext:
    """The loop's context in a Ray Train worker.

    Attributes:
        stream: Where the stream runs; jobs without one leave it as it is.
        metrics: Exports the reports, or None.
    """

    rank: int
    world_size: int
    device: torch.device
    control: ActorHandle
    stream: Stream = field(default_factory=Stream)
    metrics: TrainingMetrics | None = None

    def __post_init__(self) -> None:
        self._answer = self.control.requests.remote()
        self._requests, self._stop = Requests(), False
        self._where = f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def report(self, metrics: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics(metrics)
        self.control.report.remote(metrics)

    def report_speed(self, speed: Speed) -> None:
        self.control.report_speed.remote(speed)

    def beat(self, beat: Beat | None) -> None:
        if beat is None:
            self.control.leave.remote(self.rank)
        else:
            self.control.beat.remote(replace(beat, where=self._where))

    def spent(self) -> Spent:
        return self._requests.spent

    def stop_requested(self) -> bool:
        """The control actor's last answer; the next one is requested at once, without waiting for it."""
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready:
            self._requests = cast(Requests, ray.get(self._answer))
            self._stop = self._stop or self._requests.stop
            self._answer = self.control.requests.remote()
        return self._stop

    def is_leaving(self) -> bool:
        """Whether a node of the workers will go away, or their number is about to change.

        Ray's own `get_preemption_info` synchronizes all workers through an actor; this only reads this worker's notice, and the loop
        combines them.
        """
        told = getattr(get_train_context(), "preemption_context", None)  # Ray before 2.60 has no notices
        return self._requests.wants_checkpoint or getattr(told, "preemption_info", None) is not None


def train_worker(spec: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    Args:
        spec: `config_yaml`, `run_dir`, `num_rows`, `num_threads` (None for a share of the node's CPUs) and the `control` actor.
    """
    control = spec["control"]
    if ray.get(control.fatal.remote()):  # the workers were restarted after an error that would only occur again
        return
    config = from_yaml(spec["config_yaml"])
    logging.getLogger("ray_sassl").addHandler(NoteHandler(control))
    where = ray.train.get_context()
    torch.set_num_threads(spec["num_threads"] or _share_of_node(where.get_local_world_size()))
    if where.get_world_rank() == 0:
        note_reservation(spec["run_dir"])
    rows, parts = share_of_batch(config.train, config.scaling.num_workers, where.get_world_size())
    stream = Stream("pool" if layout_of(config) == "pool" else "tasks", config.stream.pool.max)
    context = RayContext(where.get_world_rank(), where.get_world_size(), _device(), control, stream)
    resume, is_refused = _read_start(context)
    if is_refused:
        return
    context.metrics = TrainingMetrics(storage.name_of(spec["run_dir"]), config.train.global_batch, resume.step if resume else 0)
    shard = cast(Any, ray.train.get_dataset_shard("train"))
    batches = _arrays(
        shard.iter_batches(
            batch_size=rows,
            batch_format="numpy",
            prefetch_batches=config.stream.prefetch_batches,
            drop_last=True,
        )
    )
    if isinstance(shard, WorkerStream) and context.world_size > 1:
        batches = whole_steps(batches, parts, shard.sure_steps(rows * parts, context.world_size), Agreement(context, num_flags=1))
    try:
        outcome = train_process(config, spec["run_dir"], batches, spec["num_rows"], context, resume, parts)
    except UsageError as error:
        ray.get(control.fail.remote(told(error)))
        if context.world_size == 1:
            return
        raise  # so that the other workers, which may wait for this one, end too
    except Exception:
        if ray.get(control.fatal.remote()):  # a consequence of an error that the driver already knows
            return
        raise
    if context.rank == 0:
        ray.get(control.finish.remote(outcome))


def _read_start(context: RayContext) -> tuple[Checkpoint | None, bool]:
    """The checkpoint that the stream starts from (None at the beginning), and whether it is damaged."""
    path = cast(str | None, ray.get(context.control.start.remote()))
    if path is None:
        return None, False
    try:
        return read_checkpoint_once(path, context), False
    except BadCheckpointError as error:
        if context.rank == 0:
            ray.get(context.control.refuse.remote(path, str(error)))
        return None, True


def _share_of_node(num_workers: int) -> int:
    """The CPUs of this node divided by its training workers; the stream's tasks use idle time."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(cpus) // num_workers)


def _device() -> torch.device:
    is_gpu = device_type(len(ray.get_gpu_ids())) == "cuda"
    return ray.train.torch.get_device() if is_gpu else torch.device("cpu")


def _arrays(stream: Any) -> Iterator[Arrays]:
    for batch in stream:
        yield {name: np.asarray(array) for name, array in batch.items()}
