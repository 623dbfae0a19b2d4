"""What one training process does, given a config, a context and a stream of batches; and what a run directory holds.

config.yaml  environment.json  index.arrow  metrics.jsonl  tensorboard/  views.png  quarantine.jsonl  checkpoints/  summary.json, and
diverged.json where a loss was not a number
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ray_sassl.files import storage
from ray_sassl.backbones import build_backbone
from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index, cached_index
from ray_sassl.data.seen import SeenIds
from ray_sassl.methods import Method, MethodConfig
from ray_sassl.pipeline import Restyle, ViewSource
from ray_sassl.plugins import UsageError
from ray_sassl.style.augment import Chunks, stylize_views
from ray_sassl.evaluation.subject import online_scores
from ray_sassl.train.checkpoint import BadCheckpointError, Checkpoint, latest_checkpoint, list_checkpoints, read_checkpoint
from ray_sassl.train.context import Context
from ray_sassl.train.divergence import DIVERGED
from ray_sassl.train.loop import Job, train
from ray_sassl.train.metrics import MetricsLog
from ray_sassl.types import Arrays, Outcome, RunResult

INDEX, CONFIG, SUMMARY, ENVIRONMENT, QUARANTINE, VIEWS, METRICS = (
    "index.arrow",
    "config.yaml",
    "summary.json",
    "environment.json",
    "quarantine.jsonl",
    "views.png",
    "metrics.jsonl",
)


class RunDirectoryError(UsageError):
    """The run directory is not what the command needs: it holds another run, or none."""


def view_source(config: ExperimentConfig, run_dir: str) -> ViewSource:
    """Which views of which data the run trains on, with its cached index."""
    path = storage.join(run_dir, INDEX)
    entry = storage.stat(path)
    return ViewSource(path, config.data, config.views, config.seed, entry.mtime_ns if entry else 0)


def build_method(config: ExperimentConfig) -> Method:
    """The method with the weights that the run's seed gives, the same on every rank."""
    torch.manual_seed(config.seed)
    backbone, num_features = build_backbone(config.backbone)
    method_config = config.method
    assert isinstance(method_config, MethodConfig)
    return method_config.build(backbone, num_features)


def build_restyle(config: ExperimentConfig, device_type: str, num_threads: int) -> Restyle | None:
    """Style augmentation as `pipeline.finish_block` takes it, or None where the stylizer is the identity.

    Args:
        device_type: `cpu` or `cuda`.
        num_threads: What torch may use of the CPU in this process.
    """
    if config.stylize.is_identity:
        return None
    torch.set_num_threads(max(1, num_threads))
    device = torch.device(device_type)
    stylizer = config.stylize.build(device)
    bank = config.sassl.load_bank(stylizer.bundle_id)
    chunks = Chunks()

    def restyle(views: list[np.ndarray], sample_id: np.ndarray, epoch: int) -> list[np.ndarray]:
        return stylize_views(stylizer, views, sample_id, epoch, config.seed, config.sassl, device, bank, chunks)

    return restyle


def train_process(
    config: ExperimentConfig,
    run_dir: str,
    batches: Iterator[Arrays],
    num_rows: int,
    context: Context,
    resume: Checkpoint | None,
    accumulate: int | None = None,
) -> Outcome:
    """Run this process's part of the training; rank 0 also keeps the record.

    Args:
        batches: This rank's stream.
        num_rows: Rows of the data set.
        resume: The checkpoint to go on from.
        accumulate: Parts of a batch, where they are more than the config says.
    """
    record = None
    if context.rank == 0:
        step = resume.step if resume else 0
        record = MetricsLog(run_dir, config.tracking, config.model_dump(mode="json"), resume_step=step)
    try:
        return train(
            Job(
                method=build_method(config),
                batches=batches,
                config=config.train,
                optim=config.optim,
                num_rows=num_rows,
                seed=config.seed,
                run_dir=run_dir,
                config_yaml=to_yaml(config),
                context=context,
                resume=resume,
                evaluate=online_scores(config, context.device) if context.rank == 0 else None,
                record=record,
                extra_state={"num_rows": num_rows},
                accumulate=accumulate,
            )
        )
    finally:
        if record is not None:
            record.close()


def load_backbone(checkpoint: Checkpoint) -> tuple[ExperimentConfig, nn.Module]:
    """The config that the checkpoint was made with, and its encoder."""
    config = from_yaml(checkpoint.config_yaml, source=f"{checkpoint.path}/{CONFIG}")
    backbone, _ = build_backbone(config.backbone)
    backbone.load_state_dict(checkpoint.backbone)
    return config, backbone


def find_checkpoint(path: str) -> Checkpoint:
    """The checkpoint at the path, or the newest sound one of the run there.

    Raises:
        UsageError: there is neither.
    """
    if storage.exists(storage.join(path, "manifest.json")):
        return read_checkpoint(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        raise BadCheckpointError(f"{path} is no checkpoint, and no run directory with a sound one under checkpoints/")
    return checkpoint


def prepare_run_dir(config: ExperimentConfig, run_dir: str, *, resume: bool) -> Index:
    """Make the run directory, or see that the one to resume holds this very run; returns the data's index, which is cached there.

    Raises:
        RunDirectoryError: a run has begun there and was not to be resumed, none is there to resume, or the config or the data are not its own.
    """
    config_path = storage.join(run_dir, CONFIG)
    there = storage.exists(config_path)
    if resume and not there:
        raise RunDirectoryError(f"{run_dir} holds no run to resume (no {CONFIG}); leave out --resume to start one there")
    if has_begun(run_dir) and not resume:
        raise RunDirectoryError(f"{run_dir} already holds a run; add --resume to go on with it, or give another --run-dir")
    storage.makedirs(run_dir)
    index_path = storage.join(run_dir, INDEX)
    if there and resume:
        _check_same_run(config, from_yaml(storage.read_text(config_path), source=config_path))
        index = Index.load(index_path)
        if changed := index.changed_files():
            named = "\n".join(f"  {path}" for path in changed[:20])
            raise RunDirectoryError(
                f"{len(changed):,} files of the data set have changed since the run began, so its epochs cannot be continued exactly:\n"
                f"{named}\nRestore them, or start a new run."
            )
        _check_checkpoints(run_dir)
    else:
        index = cached_index(config.data, index_path)
    storage.write_text(config_path, to_yaml(config))
    storage.write_text(storage.join(run_dir, ENVIRONMENT), json.dumps(environment(), indent=2))
    for name in (SUMMARY, DIVERGED):
        storage.remove(storage.join(run_dir, name))
    return index


def _check_checkpoints(run_dir: str) -> None:
    """Remove what a killed run left of a checkpoint that it was writing, and refuse a run all of whose checkpoints are damaged."""
    for entry in storage.list_dir(storage.join(run_dir, "checkpoints")):
        if storage.name_of(entry.path).startswith("."):
            storage.remove(entry.path)
    if list_checkpoints(run_dir) and latest_checkpoint(run_dir) is None:
        raise BadCheckpointError(
            f"every checkpoint of {run_dir} is damaged (the log says how), so there is nothing to go on from. Restore one, or start a new run "
            "in another --run-dir."
        )


def has_begun(run_dir: str) -> bool:
    """Whether a run has begun there, so that there is something to go on with."""
    there = storage.exists(storage.join(run_dir, CONFIG))
    return there and (storage.exists(storage.join(run_dir, METRICS)) or bool(list_checkpoints(run_dir)))


RESUME_MAY_CHANGE = ("scaling", "stream", "tracking", "evaluate", "name")
"""Parts of the config that say where and how a run is carried out, not what it computes; and lengths and periods of `train` below."""
_TRAIN_MAY_CHANGE = ("epochs", "accumulate", "compile", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every")


def _check_same_run(new: ExperimentConfig, old: ExperimentConfig) -> None:
    def essence(config: ExperimentConfig) -> dict:
        tree = config.model_dump(mode="json", exclude=set(RESUME_MAY_CHANGE))
        tree["train"] = {name: value for name, value in tree["train"].items() if name not in _TRAIN_MAY_CHANGE}
        return tree

    before, after = essence(old), essence(new)
    differing = [f"{part}{name}" for part in before for name in _differing(before[part], after[part])]
    if differing:
        raise RunDirectoryError(
            f"the run to resume has another {', '.join(differing)}; a resumed run may change only {', '.join(RESUME_MAY_CHANGE)} and "
            f"train.{{{', '.join(_TRAIN_MAY_CHANGE)}}}"
        )


def _differing(before: object, after: object) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return sorted(f".{name}" for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [] if before == after else [""]


def environment() -> dict[str, object]:
    """What the run ran on and with, for the record."""
    packages = ("ray-sassl", "ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "pillow", "opencv-python-headless", "pydantic")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    versions = {name: metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpus": gpus,
        "command": sys.argv,
        "commit": _commit(),
        "packages": versions,
    }


def _commit() -> str | None:
    """The commit of this source, where it stands in a git checkout of its own."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        found = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def write_summary(result: RunResult) -> None:
    """Put `summary.json` in the run directory; it is written last, whatever the end was."""
    storage.write_text(storage.join(result.run_dir, SUMMARY), json.dumps(asdict(result), indent=2))


def seen_of(checkpoint: Checkpoint | None, num_rows: int) -> SeenIds:
    """Which samples the run had seen at the checkpoint."""
    return SeenIds.from_state_dict(checkpoint.state["seen"]) if checkpoint else SeenIds(num_rows)
