"""Pretraining from Python: `pretrain`, `draw_views`, `list_experiments`, `run_demo`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.datasets import load_evaluation_data
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.subject import score, untrained_backbone
from ray_sassl.experiments import experiments, load_experiment
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.orchestrate.pretraining import launch
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.runs.configs import Overrides, default_run_dir, load_config
from ray_sassl.runs.directory import INDEX, find_checkpoint, has_begun
from ray_sassl.runs.pictures import views_picture
from ray_sassl.runs.process import build_stylize_block, load_backbone, view_source
from ray_sassl.types import RunResult

Resume = bool | Literal["if begun"]
"""Whether to continue the run in the run directory: True requires one, "if begun" continues one or starts a new one."""


def _ignore(update: ProgressUpdate) -> None:
    pass


def pretrain(
    experiment: ExperimentConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    overrides: Overrides = None,
    resume: Resume = False,
    address: str | None = None,
    watch: Callable[[ProgressUpdate], None] = _ignore,
) -> RunResult:
    """Pretrain an encoder; the record is the run directory.

    In the main thread, the first Ctrl-C stops the run at the next step with a checkpoint, and the second one stops it at once.

    Args:
        experiment: A config, an experiment's name, a YAML file, or a run directory.
        run_dir: Local path or URI. On a cluster of several nodes all of them must reach it. By default `runs/NAME`.
        overrides: Changes to the config, such as `{"train.epochs": 20}`.
        resume: Whether to continue the run that is in the run directory; "if begun" continues it if there is one.
        address: Address of a running Ray cluster. By default RAY_ADDRESS, or else Ray is started on this machine.
        watch: Called several times a second with what is new.

    Raises:
        FolderInUseError: another command is at work in the run directory.
        UsageError: the config, data, run directory or cluster do not allow the run; nothing was trained.
        RunFailedError: the run ended by an error.
    """
    config = load_config(experiment, overrides)
    place = os.fspath(run_dir) if run_dir is not None else default_run_dir(experiment, config)
    with hold_folder(place, "pretrain"):
        goes_on = has_begun(place) if resume == "if begun" else resume
        return launch.pretrain(config, place, resume=goes_on, address=address, watch=watch)


def list_experiments() -> dict[str, str]:
    """The named experiments with one line about each, in the order in which people need them."""
    return {name: (function.__doc__ or "").partition("\n")[0] for name, function in experiments().items()}


def draw_views(
    experiment: ExperimentConfig | str | os.PathLike[str], out: str = "views.png", *, overrides: Overrides = None, num_rows: int = 8
) -> str:
    """Draw what the network will see: crops, stylized crops and final views of some images. Returns the path of the picture.

    Args:
        experiment: A config, an experiment's name, a YAML file, or a run directory.
        out: Path or URI of the PNG.
        overrides: Changes to the config.
        num_rows: How many images to show.

    Raises:
        UsageError: the config is wrong, or its data or stylizer are not there.
    """
    config = load_config(experiment, overrides)
    with tempfile.TemporaryDirectory() as folder:
        build_index(config.data).save(Path(folder) / INDEX)
        picture = views_picture(config, view_source(config, folder), build_stylize_block(config, "cpu", 1), num_rows)
    storage.write_bytes(out, picture)
    return out


@dataclass(frozen=True)
class DemoResult:
    """What the demo has shown.

    Attributes:
        scores: kNN and linear top-1, each in [0, 1], by encoder.
        chance: Top-1 of guessing the most frequent class.
        runs: How the two runs ended; only those that were started.
    """

    scores: dict[str, tuple[float, float]]
    chance: float
    runs: list[RunResult]


DEMO_RUNS = {"without style augmentation": "demo_plain", "with style augmentation": "demo"}
"""The demo's experiments by what sets them apart."""


def run_demo(
    run_dir: str | None = None,
    *,
    address: str | None = None,
    watch: Callable[[str, ProgressUpdate], None] = lambda name, update: None,
) -> DemoResult:
    """Pretrain twice on the embedded data set, with and without style augmentation, and score both encoders beside the untrained one.

    Args:
        run_dir: Folder for the two runs. By default `runs/demo-DATE-TIME`.
        address: Address of a running Ray cluster, as for `pretrain`.
        watch: Called with an experiment's name and what is new of its run.

    Raises:
        RunFailedError: a run ended by an error.
    """
    folder = run_dir or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}"
    runs: dict[str, RunResult] = {}
    with ray_session(address):
        for title, name in DEMO_RUNS.items():
            place = storage.join(folder, name)
            runs[title] = launch.pretrain(
                load_experiment(name), place, address=address, watch=lambda update, name=name: watch(name, update)
            )
            if runs[title].status == "interrupted":
                return DemoResult({}, 0.0, list(runs.values()))
    config = load_experiment("demo")
    data = load_evaluation_data(config)
    encoders = {"untrained": untrained_backbone(config)}
    encoders |= {f"pretrained {title}": load_backbone(find_checkpoint(result.run_dir))[1] for title, result in runs.items()}
    scores = {}
    for title, backbone in encoders.items():
        knn, linear = score(config, backbone, data, [Knn(), Linear()])
        scores[title] = knn["top1"], linear["top1"]
    return DemoResult(scores, data.chance, list(runs.values()))
