"""The content of a run directory, how a run begins, and when it may be resumed.

config.yaml  environment.json  index.arrow  metrics.jsonl  tensorboard/  views.png  neighbors.png  neighbors.json  dose.json
quarantine.jsonl  checkpoints/  summary.json, and diverged.json where a loss was not a number
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import torch

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.roles import changeable_paths, differing_paths, fixed_part
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.building import OrderedMap
from ray_sassl.data.contents import check_same_content, with_digests
from ray_sassl.data.index import Index
from ray_sassl.data.plan import with_window
from ray_sassl.data.reading import build_index, cached_index, is_of, refuse_left_out
from ray_sassl.data.sources import path_around
from ray_sassl.evaluation.results import EVALUATION
from ray_sassl.experiments import load_experiment, summaries
from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json
from ray_sassl.files.own import mark_folder
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import redacted_tree
from ray_sassl.runs.files import (
    CONFIG,
    ENVIRONMENT,
    EXPERIMENT,
    INDEX,
    METRICS,
    NEIGHBORS,
    QUARANTINE,
    SUMMARY,
    TEACHER,
    VIEWS,
    RunDirectoryError,
)
from ray_sassl.train.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint
from ray_sassl.train.checkpoint_folder import MANIFEST, BadCheckpointError, list_checkpoints, newest_seen
from ray_sassl.train.divergence import DIVERGED
from ray_sassl.types import RunResult

DATA_PATH = "data.path"


def find_checkpoint(path: str) -> Checkpoint:
    """The checkpoint at the path, or the newest intact one of the run there.

    Raises:
        UsageError: there is neither.
    """
    if storage.exists(storage.join(path, MANIFEST)):
        return read_checkpoint(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        raise BadCheckpointError(f"{path} is not a checkpoint, and not a run directory with a valid one under checkpoints/")
    return checkpoint


def settled(config: ExperimentConfig, run_dir: str, *, resume: bool) -> ExperimentConfig:
    """The config with what it leaves open decided: a run to resume crops as it began, and has its own order of images; a new one has
    `views.resizing=fast` (`prepare_run_dir` decides the order, by the data)."""
    path = storage.join(run_dir, CONFIG)
    if resume and not storage.exists(path):
        return config
    begun = _begun_with(from_yaml(storage.read_text(path), source=path)) if resume else None
    if config.views.resizing == "auto":
        config = _with_resizing(config, begun.views.resizing if begun is not None else "fast")
    if begun is not None and config.data.shuffle_gb is None and config.data.shuffle_window is None:
        order = {"shuffle_gb": begun.data.shuffle_gb, "shuffle_window": begun.data.shuffle_window}
        config = config.model_copy(update={"data": config.data.model_copy(update=order)})
    return config


def _begun_with(config: ExperimentConfig) -> ExperimentConfig:
    """The config of a run that has begun; where it leaves open who crops, it was Pillow, before there was a choice."""
    return _with_resizing(config, "pillow") if config.views.resizing == "auto" else config


def _with_resizing(config: ExperimentConfig, resizing: str) -> ExperimentConfig:
    return config.model_copy(update={"views": config.views.model_copy(update={"resizing": resizing})})


def prepare_run_dir(
    config: ExperimentConfig,
    run_dir: str,
    *,
    resume: bool,
    data_moved: bool = False,
    known: Index | None = None,
    each: OrderedMap | None = None,
) -> Index:
    """Make the run directory, or check that the one to resume contains this run; returns the data's index, which is cached there, with a
    config that says how much is shuffled together.

    Args:
        data_moved: For a run to resume: its data may be elsewhere now, or copied again, if their content is the same.
        known: For a new run: an index that was just built, which is used if it is of these data.
        each: Scans shards, see `build_index`.

    Raises:
        RunDirectoryError: there is a run and `resume` is not set, there is none to resume, or the config or the data are not the run's.
    """
    config_path = storage.join(run_dir, CONFIG)
    there = storage.exists(config_path)
    if has_begun(run_dir) and not there:
        raise RunDirectoryError(
            f"{run_dir} already contains a run, but not its {CONFIG}. Restore that file to resume the run, or give another --run-dir."
        )
    if resume and not there:
        raise RunDirectoryError(f"{run_dir} contains no run to resume (no {CONFIG}); leave out --resume to start one there")
    if has_begun(run_dir) and not resume:
        raise RunDirectoryError(f"{run_dir} already contains a run; add --resume to continue it, or give another --run-dir")
    _mark(config, run_dir, is_new=not resume)
    index_path = storage.join(run_dir, INDEX)
    if there and resume:
        begun = from_yaml(storage.read_text(config_path), source=config_path)
        _check_same_run(_begun_with(config), _begun_with(begun), data_moved=data_moved)
        index = index_to_continue(config.data, index_path, data_moved=data_moved)
        _check_checkpoints(run_dir)
    elif known is not None and is_of(known, config.data):
        refuse_left_out(config.data, known.left_out)
        with_digests(replace(known, config=config.data)).save(index_path)
        index = Index.load(index_path)
    else:
        index = cached_index(config.data, index_path, with_content=True, each=each)
    index = replace(index, config=with_window(config.data, index))
    storage.write_text(config_path, to_yaml(config.model_copy(update={"data": index.config})))
    record = environment() | {EXPERIMENT: _experiment(config.name)}
    storage.write_text(storage.join(run_dir, ENVIRONMENT), json.dumps(record, indent=2))
    for name in (SUMMARY, DIVERGED) if resume else (SUMMARY, DIVERGED, QUARANTINE):  # whose rows may be of other data
        storage.remove(storage.join(run_dir, name))
    return index


def index_to_continue(data: DataConfig, path: str, *, data_moved: bool = False) -> Index:
    """The index at the path, once the data are seen to be still those that it is of.

    Args:
        data_moved: The data may be elsewhere now, or copied again, if their content is the same; the index of them is saved then.

    Raises:
        RunDirectoryError: the data are others.
    """
    if not storage.exists(path):
        raise RunDirectoryError(
            f"{storage.parent(path)} has lost its {INDEX}, so its epochs cannot be continued exactly. Restore that file."
        )
    index = Index.load(path)
    if data_moved:
        now = build_index(data)
        if now.fingerprint != index.fingerprint or now.root != index.root:
            try:
                index = check_same_content(index, now)
            except UsageError as error:
                raise RunDirectoryError(f"--data-moved is for the same data at another place, and {error}") from error
            index.save(path)
    elif changed := index.changed_files():
        named = "\n".join(f"  {path}" for path in changed[:20])
        raise RunDirectoryError(
            f"{len(changed):,} files of the data set have changed since the run began, so its epochs cannot be continued exactly:\n"
            f"{named}\nRestore them, or start a new run. If they were only copied again, add --data-moved, which compares their content."
        )
    refuse_left_out(data, index.left_out)
    if index.config != data or index.mapped is None:  # workers read the index with its config, and map it
        index = replace(index, config=data)
        index.save(path)
    return index


_OWN_NAMES = (
    *(
        INDEX,
        CONFIG,
        SUMMARY,
        ENVIRONMENT,
        QUARANTINE,
        VIEWS,
        NEIGHBORS,
        METRICS,
        DIVERGED,
        "checkpoints",
        "tensorboard",
        "evaluation",
        "exchange",
    ),
    *("report.html", "dose.json", "trial.json", "start.safetensors", "start.json", "neighbors.json", TEACHER),
)


def _mark(config: ExperimentConfig, run_dir: str, *, is_new: bool) -> None:
    """Make the directory, and mark it as ours, so that it never becomes part of data around it.

    Raises:
        RunDirectoryError: it lies in the run's own data and holds other files, which may be those data.
    """
    storage.makedirs(run_dir)
    if not mark_folder(run_dir, _OWN_NAMES) and is_new and (path := path_around(config.data, run_dir)):
        raise RunDirectoryError(
            f"{run_dir} lies in the data ({path}) and holds other files, so what the run writes there would be taken for data. Give a new "
            f"or empty folder."
        )


def _check_checkpoints(run_dir: str) -> None:
    """Remove a killed run's unfinished checkpoint, and refuse a run whose checkpoints are all damaged."""
    for entry in storage.list_dir(storage.join(run_dir, "checkpoints")):
        if storage.name_of(entry.path).startswith("."):
            storage.remove(entry.path)
    newest_seen(run_dir)


def has_begun(run_dir: str) -> bool:
    """Whether there is any trace of a run, even without its config: what a start that failed before the first step has left is none."""
    if storage.exists(storage.join(run_dir, METRICS)) or list_checkpoints(run_dir):
        return True
    return bool(storage.list_dir(storage.join(run_dir, EVALUATION))) or _has_trained(run_dir)


def _has_trained(run_dir: str) -> bool:
    """Whether the summary tells of a step; one that cannot be read tells of a run."""
    try:
        summary = read_json(storage.join(run_dir, SUMMARY))
    except UsageError:
        return True
    return summary is not None and summary.get("step") != 0


def _check_same_run(new: ExperimentConfig, old: ExperimentConfig, *, data_moved: bool) -> None:
    before, after = (fixed_part(config.model_dump(mode="json")) for config in (old, new))
    differing = [path for path in differing_paths(before, after) if not (data_moved and path == DATA_PATH)]
    if differing == [DATA_PATH]:
        raise RunDirectoryError(
            f"the run to resume has another {DATA_PATH} ({', '.join(old.data.paths)}). If the same data are at {', '.join(new.data.paths)} "
            f"now, add --data-moved, which compares their content."
        )
    if differing:
        raise RunDirectoryError(
            f"the run to resume has another {', '.join(differing)}; a resumed run may change only {', '.join(changeable_paths())}"
        )


def _experiment(name: str) -> dict[str, object] | None:
    """The settings of the experiment of that name, if there is one: pages tell what differs from it without importing its classes."""
    return load_experiment(name).model_dump(mode="json") if name in summaries() else None


def environment() -> dict[str, object]:
    """The machine, packages and command of the run, for the record."""
    packages = (
        "ray-sassl",
        "ray",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pyarrow",
        "pillow",
        "simplejpeg",
        "opencv-python-headless",
        "pydantic",
    )
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    versions = {name: metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpus": gpus,
        "command": redacted_tree(sys.argv),
        "commit": _commit(),
        "packages": versions,
    }


def _commit() -> str | None:
    """The commit of this source if it is in its own git checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        found = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def write_summary(result: RunResult) -> None:
    """Write `summary.json` to the run directory; it is written last, however the run ended."""
    storage.write_text(storage.join(result.run_dir, SUMMARY), json.dumps(asdict(result), indent=2))
