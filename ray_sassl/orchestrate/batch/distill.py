"""`distill(...)`: train a small stylizer from the published one, as a Ray Train job that resumes from its checkpoints.

Each worker computes its share of the teacher's codes once and stores it in the work directory; gradients are averaged over the workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import nn

from ray_sassl.config.files import model_from_yaml, to_yaml
from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, start_control
from ray_sassl.orchestrate.pretraining.train_job import Workers
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.scanning import index_of
from ray_sassl.orchestrate.runtime.weights import keep_weights, receive_weights
from ray_sassl.process.errors import UsageError
from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.distillation.crops import Crops, Teacher, make_crops
from ray_sassl.style.distillation.training import Distiller
from ray_sassl.style.stylizers.magenta import Config as TeacherConfig
from ray_sassl.style.stylizers.magenta import build_networks
from ray_sassl.style.stylizers.swift import pack_student, read_student
from ray_sassl.style.weights import load_weights

_LOG_EVERY = 50
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
    """
    teacher = teacher or TeacherConfig()
    workers = workers or Workers()
    keeper = keep_weights(teacher)
    if config.batch_size % workers.count:
        raise UsageError(f"batches of {config.batch_size} cannot be shared evenly by {workers.count} workers")
    workers.check()
    first = None if start is None else read_student(start)
    indexes = (
        [index_of(data, show_progress=show_progress) for data in contents],
        [index_of(data, show_progress=show_progress) for data in styles],
    )
    work_dir = work_dir if (local := storage.local_path(work_dir)) is None else str(local)
    _open_work_dir(work_dir, config, indexes, excluded, workers.count, None if first is None else first[1]["code_space"])
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
    step = 0
    with (
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

        workers.run(_worker, spec, name="distill", folder=work_dir, control=control, watch=show)
    state = _load_checkpoint(work_dir)
    assert state is not None, "the workers ended without a result and without an error"
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
    config = model_from_yaml(DistillConfig, spec["config"])
    reason = None
    crops = None
    teacher = _teacher(spec, device)
    try:
        crops = _crops(spec, config, teacher, rank, world_size)
    except UsageError as error:  # restarting the workers would give the same error
        reason = str(error)
        ray.get(control.fail.remote(reason))
    if _any_failed(reason is not None, world_size, device):
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
        if rank == 0 and (distiller.step % spec["checkpoint_every"] == 0 or distiller.step == config.steps):
            _save_checkpoint(spec["work_dir"], distiller)


def _teacher(spec: dict[str, Any], device: torch.device) -> Teacher:
    config = model_from_yaml(TeacherConfig, spec["teacher"])
    receive_weights(config, spec["keeper"])
    predictor, transformer = (
        network.eval().requires_grad_(False).to(device)
        for network in build_networks(load_weights(config.published_weights(), config.weights))
    )
    return Teacher(predictor.to(torch.bfloat16).to(memory_format=torch.channels_last), transformer)


def _crops(spec: dict[str, Any], config: DistillConfig, teacher: Teacher, rank: int, world_size: int) -> Crops:
    """The worker's share, read from the work directory or computed."""
    path = storage.join(spec["work_dir"], f"crops-{rank}-of-{world_size}.safetensors")
    if storage.exists(path):
        crops = Crops.from_bytes(storage.read_bytes(path))
        spec["control"].report.remote({"crops": len(crops)})
        return crops
    parts: list[Crops] = []
    bad: list[BadRow] = []
    for part in make_crops(
        teacher, spec["contents"], spec["styles"], config, excluded=spec["excluded"], rank=rank, world_size=world_size, on_bad=bad.append
    ):
        parts.append(part)
        spec["control"].report.remote({"crops": len(part)})
    ray.get(spec["control"].add_bad.remote(bad))
    crops = Crops.joined(parts)
    storage.write_bytes(path, crops.to_bytes())
    return crops


def _any_failed(has_failed: bool, world_size: int, device: torch.device) -> bool:
    """Whether a worker has failed; then no other worker may wait for it."""
    if world_size == 1:
        return has_failed
    flag = torch.tensor(float(has_failed), device=device)
    dist.all_reduce(flag)
    return bool(flag)


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
        storage.write_text(path, json.dumps(job, indent=2) + "\n")
        return
    there = json.loads(storage.read_text(path))
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
    return torch.load(io.BytesIO(storage.read_bytes(path)), map_location="cpu", weights_only=True)


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
