"""`distill(...)`: train a small stylizer from the published one, as a Ray Train job that resumes from its checkpoints.

Each worker computes its share of the teacher's codes once and stores it in the work directory; gradients are averaged over the workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from safetensors import SafetensorError
from torch import nn

from ray_sassl.config.files import model_from_yaml, to_yaml
from ray_sassl.config.schema import FaultConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json
from ray_sassl.files.lock import hold_folder
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, start_control
from ray_sassl.orchestrate.pretraining.train_job import Workers
from ray_sassl.orchestrate.pretraining.worker import RayContext
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.scanning import index_of
from ray_sassl.orchestrate.runtime.weights import keep_weights, receive_weights
from ray_sassl.process.ending import end_after, on_notice
from ray_sassl.process.errors import UsageError
from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.distillation.crops import Crops, Teacher, make_crops
from ray_sassl.style.distillation.training import Distiller
from ray_sassl.style.stylizers.magenta import Config as TeacherConfig
from ray_sassl.style.stylizers.magenta import build_networks
from ray_sassl.style.stylizers.swift import pack_student, read_student
from ray_sassl.style.weights import load_weights
from ray_sassl.train.checkpoint_folder import read_state_file
from ray_sassl.train.context import on_any_rank

_LOG_EVERY = 50
_CROPS_AT_ONCE = 1024
"""New crops in each file of them, until a worker has all of its own."""
_JOB, _CHECKPOINT = "job.json", "checkpoint.pt"


@dataclass(frozen=True)
class DistillResult:
    """The result of `distill`.

    Attributes:
        steps: Optimizer steps of the whole training.
        code_space: The code space of the student.
        metrics: The last logged means of the loss and its parts.
        bad_rows: Rows that could not be used.
    """

    steps: int
    code_space: str
    metrics: dict[str, float]
    bad_rows: list[BadRow]


def distill(
    contents: Sequence[DataConfig],
    styles: Sequence[DataConfig],
    out: str,
    config: DistillConfig,
    *,
    work_dir: str,
    teacher: TeacherConfig | None = None,
    start: str | None = None,
    excluded: Sequence[str] = (),
    workers: Workers | None = None,
    checkpoint_every: int = 500,
    show_progress: bool = True,
) -> DistillResult:
    """Do the work of `ray_sassl.distill_stylizer`; Ray must be initialized.

    Args:
        work_dir: All workers must have access to it. It may be deleted after the training.
        start: Path or URI of an earlier student's file to start from; random weights if not given.
        workers: The workers that share each step's batch; by default, one worker with one CPU.
        checkpoint_every: Steps between checkpoints.

    Raises:
        FolderInUseError: another job is at work in the work directory.
        KeyboardInterrupt: a signal has ended it; what is done is in the work directory.
    """
    teacher = teacher or TeacherConfig()
    workers = workers or Workers()
    if config.batch_size % workers.count:
        raise UsageError(f"batches of {config.batch_size} cannot be shared evenly by {workers.count} workers")
    workers.check()
    first = None if start is None else read_student(start)
    indexes = (
        [index_of(data, show_progress=show_progress) for data in contents],
        [index_of(data, show_progress=show_progress) for data in styles],
    )
    work_dir = work_dir if (local := storage.local_path(work_dir)) is None else str(local)
    origin = None if first is None else first[1]["code_space"]
    with hold_folder(work_dir, "stylize distill"):
        _open_work_dir(work_dir, config, indexes, excluded, workers.count, origin)
        return _distill(out, config, indexes, work_dir, teacher, first, excluded, workers, checkpoint_every, show_progress)


def _distill(
    out: str,
    config: DistillConfig,
    indexes: tuple[list[Index], list[Index]],
    work_dir: str,
    teacher: TeacherConfig,
    first: tuple[dict[str, torch.Tensor], dict[str, str]] | None,
    excluded: Sequence[str],
    workers: Workers,
    checkpoint_every: int,
    show_progress: bool,
) -> DistillResult:
    """The work of `distill` in a work directory that is the job's own."""
    keeper = keep_weights(teacher)
    control = start_control(sum(index.num_rows for kind in indexes for index in kind), 1.0, storage.join(work_dir, "quarantine.jsonl"))
    spec = {
        "config": to_yaml(config),
        "teacher": to_yaml(teacher),
        "keeper": keeper,
        "contents": indexes[0],
        "styles": indexes[1],
        "excluded": tuple(excluded),
        "start": None if first is None else ray.put(first[0]),
        "work_dir": work_dir,
        "num_threads": workers.num_threads,
        "checkpoint_every": checkpoint_every,
        "control": control,
    }
    metrics: dict[str, float] = {}
    step, stop, fault = 0, threading.Event(), FaultConfig()
    with (
        on_notice(stop.set, grace_s=fault.grace_s, preempt_signal=fault.preempt_signal) as notice,
        progress_bar("the teacher's codes", config.num_crops, is_shown=show_progress) as advance_crops,
        progress_bar("distilling", config.steps, is_shown=show_progress) as advance_steps,
    ):

        def show(update: ProgressUpdate) -> None:
            nonlocal step
            for report in update.reports:
                if "crops" in report:
                    advance_crops(int(report["crops"]))
                else:
                    metrics.update(report)
                    advance_steps(int(report["step"]) - step)
                    step = int(report["step"])

        workers.run(_worker, spec, name="distill", folder=work_dir, control=control, watch=show, stop=stop)
    state = _load_checkpoint(work_dir)
    if state is None or state["step"] < config.steps:
        end_after(notice)
        raise AssertionError("the workers ended without a result and without an error")
    code_space = f"swift-{_digest(state['export'])}"
    storage.write_bytes(
        out,
        pack_student(
            state["export"],
            {
                "code_space": code_space,
                "teacher": "magenta",
                "distillation": config.model_dump_json(),
                **({} if first is None else {"start": first[1]["code_space"]}),
            },
        ),
    )
    return DistillResult(config.steps, code_space, metrics, cast("list[BadRow]", ray.get(control.bad_rows.remote())))


def _worker(spec: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    control: ActorHandle = spec["control"]
    torch.set_num_threads(spec["num_threads"])
    where = ray.train.get_context()
    rank, world_size = where.get_world_rank(), where.get_world_size()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    context = RayContext(rank, world_size, device, control)
    config = model_from_yaml(DistillConfig, spec["config"])
    crops = None
    teacher = _teacher(spec, device)
    try:
        crops = _crops(spec, config, teacher, context)
    except UsageError as error:  # restarting the workers would give the same error
        ray.get(control.fail.remote(str(error)))
    if any(on_any_rank([crops is None], context)):  # then no other worker may wait for it
        return
    assert crops is not None
    start = spec["start"] and ray.get(spec["start"])
    distiller = Distiller(teacher.transformer, crops.codes, config, device, start)  # pyright: ignore[reportArgumentType]
    if (state := _load_checkpoint(spec["work_dir"])) is not None:
        distiller.load_state_dict(state)
    elif world_size > 1:  # each worker has its own codes; all use the statistics of the first one
        for network in (distiller.student, distiller.average):
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)
    sums: dict[str, torch.Tensor] = {}
    while distiller.step < config.steps:
        parts = distiller.train_step(crops, rank, world_size, _share_gradients if world_size > 1 else None)
        sums = {name: sums.get(name, 0.0) + value for name, value in parts.items()}
        if rank == 0 and (distiller.step % _LOG_EVERY == 0 or distiller.step == config.steps):
            count = distiller.step % _LOG_EVERY or _LOG_EVERY
            control.report.remote({"step": distiller.step, **{name: float(value) / count for name, value in sums.items()}})
            sums = {}
        (stops,) = on_any_rank([context.stop_requested()], context)
        if rank == 0 and (stops or distiller.step % spec["checkpoint_every"] == 0 or distiller.step == config.steps):
            _save_checkpoint(spec["work_dir"], distiller)
        if stops:
            return


def _teacher(spec: dict[str, Any], device: torch.device) -> Teacher:
    config = model_from_yaml(TeacherConfig, spec["teacher"])
    receive_weights(config, spec["keeper"])
    predictor, transformer = (
        network.eval().requires_grad_(False).to(device)
        for network in build_networks(load_weights(config.published_weights(), config.weights))
    )
    return Teacher(predictor.to(torch.bfloat16).to(memory_format=torch.channels_last), transformer)


def _crops(spec: dict[str, Any], config: DistillConfig, teacher: Teacher, context: RayContext) -> Crops | None:
    """The worker's share, read from the work directory or computed; None after a requested stop, with what is computed in files."""
    rank, world_size = context.rank, context.world_size
    name = f"crops-{rank}-of-{world_size}"
    path = storage.join(spec["work_dir"], f"{name}.safetensors")
    if storage.exists(path):
        crops = _read_crops(path)
        spec["control"].report.remote({"crops": len(crops)})
        return crops
    files: list[str] = []
    while storage.exists(file := storage.join(spec["work_dir"], f"{name}-part-{len(files)}.safetensors")):
        files.append(file)
    known = Crops.joined([_read_crops(file) for file in files]) if files else None
    num_kept = len(known) if known is not None else 0
    parts: list[Crops] = []
    bad: list[BadRow] = []
    count = 0
    share = {"excluded": spec["excluded"], "rank": rank, "world_size": world_size}
    for part in make_crops(teacher, spec["contents"], spec["styles"], config, **share, on_bad=bad.append, known=known):
        parts.append(part)
        count += len(part)
        spec["control"].report.remote({"crops": len(part)})
        stops = context.stop_requested()
        if count - num_kept >= (1 if stops else _CROPS_AT_ONCE):
            file = storage.join(spec["work_dir"], f"{name}-part-{len(files)}.safetensors")
            storage.write_bytes(file, Crops.joined(parts).take(slice(num_kept, count)).to_bytes())
            files.append(file)
            num_kept = count
        if stops:
            return None
    ray.get(spec["control"].add_bad.remote(bad))
    crops = Crops.joined(parts)
    storage.write_bytes(path, crops.to_bytes())
    for file in reversed(files):
        storage.remove(file)
    return crops


def _read_crops(path: str) -> Crops:
    """The crops in a file of the work directory.

    Raises:
        UsageError: it is damaged.
    """
    try:
        return Crops.from_bytes(storage.read_bytes(path))
    except (SafetensorError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); delete it, and its crops are made again") from error


def _share_gradients(network: nn.Module) -> None:
    """Average the gradients over the workers."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _open_work_dir(
    work_dir: str,
    config: DistillConfig,
    indexes: tuple[list[Index], list[Index]],
    excluded: Sequence[str],
    num_workers: int,
    start: str | None,
) -> None:
    """Refuse the work directory of another job; write the job to a new one."""
    job = {
        "config": config.model_dump(mode="json"),
        "contents": [index.fingerprint for index in indexes[0]],
        "styles": [index.fingerprint for index in indexes[1]],
        "excluded": sorted(excluded),
        "num_workers": num_workers,
        "start": start,
    }
    path = storage.join(work_dir, _JOB)
    if not storage.exists(path):
        if others := [name for entry in storage.list_dir(work_dir) if not (name := storage.name_of(entry.path)).startswith(".")]:
            raise UsageError(
                f"{work_dir} has no {_JOB}, but {', '.join(others[:3])}, of which nobody knows the job; choose another --work-dir"
            )
        storage.write_text(path, json.dumps(job, indent=2) + "\n")
        return
    there = read_json(path) or {}
    if there != json.loads(json.dumps(job)):
        other = [name for name in job if there.get(name) != json.loads(json.dumps(job[name]))]
        raise UsageError(f"{work_dir} has another job, with other {' and '.join(other)}; choose another --work-dir, or delete this one")


def _save_checkpoint(work_dir: str, distiller: Distiller) -> None:
    buffer = io.BytesIO()
    torch.save({**distiller.state_dict(), "export": distiller.average.export()}, buffer)
    storage.write_bytes(storage.join(work_dir, _CHECKPOINT), buffer.getvalue())


def _load_checkpoint(work_dir: str) -> dict[str, Any] | None:
    path = storage.join(work_dir, _CHECKPOINT)
    if not storage.exists(path):
        return None
    return read_state_file(path)


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
