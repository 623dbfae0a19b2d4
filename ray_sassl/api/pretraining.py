"""Pretraining from Python: `pretrain`, `plan_run`, `run_demo`."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from ray_sassl.config.overrides import strictly
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.datasets import load_evaluation_data
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.subject import score, untrained_backbone
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.orchestrate.pretraining import launch
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.runtime.machine import cluster_machine
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.process.ending import Notice, end_after
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, default_run_dir, load_config, names_data, override_list
from ray_sassl.runs.directory import find_checkpoint, has_begun
from ray_sassl.runs.process import load_backbone
from ray_sassl.runs.recipe import Machine, Recipe, choose_recipe, run_name
from ray_sassl.train.metrics import TrackingConfig
from ray_sassl.types import RunResult

Resume = bool | Literal["if begun"]
"""Whether to continue the run in the run directory: True requires one, "if begun" continues one or starts a new one."""

_TIMED_STEPS = 12


def _ignore(update: ProgressUpdate) -> None:
    pass


@dataclass(frozen=True)
class RunPlan:
    """What `pretrain` would do.

    Attributes:
        config: The run's config.
        run_dir: Where the run goes.
        resume: Whether it continues the run that is there.
        recipe: How the config was chosen, for a new run on images of one's own.
        index: The index of the run's data, if it had to be built.
    """

    config: ExperimentConfig
    run_dir: str
    resume: bool
    recipe: Recipe | None
    index: Index | None = None


def plan_run(
    experiment: ExperimentConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    overrides: Overrides = None,
    resume: Resume = False,
    data_moved: bool = False,
    minutes: float | None = None,
    strict: bool = False,
    address: str | None = None,
) -> RunPlan:
    """The config and the place of a run, without starting it.

    A run on images of one's own that is continued keeps the config that was chosen at its start. With `minutes` some steps are trained and
    thrown away, to know their rate.

    Args:
        experiment: As for `pretrain`.
        run_dir: As for `pretrain`.
        overrides: As for `pretrain`.
        resume: As for `pretrain`.
        data_moved: As for `pretrain`.
        minutes: As for `pretrain`.
        strict: As for `pretrain`.
        address: Address of the Ray cluster whose GPUs the config is chosen for; by default RAY_ADDRESS, or else this machine's.

    Raises:
        UsageError: nothing of that name is there, the images do not allow a run, or an override is wrong.
    """
    if strict:
        overrides = [*override_list(overrides), "data.strict=true"]
    plan = _plan(experiment, run_dir, overrides, resume, data_moved, address)
    plan = replace(plan, config=strictly(plan.config)) if strict else plan
    if minutes is None:
        return plan
    if plan.resume:
        raise UsageError("`minutes` sets the length of a new run; change the length of this one by train.epochs")
    index = plan.index or build_index(plan.config.data)
    return replace(plan, config=lasting(plan.config, minutes, address=address, index=index), index=index)


def _plan(
    experiment: ExperimentConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None,
    overrides: Overrides,
    resume: Resume,
    data_moved: bool,
    address: str | None,
) -> RunPlan:
    if data_moved and not resume:
        raise UsageError("--data-moved is for a run that is resumed; leave it out of a new one")
    if not names_data(experiment):
        config = load_config(experiment, overrides)
        place = os.fspath(run_dir) if run_dir is not None else default_run_dir(experiment, config)
        return RunPlan(config, place, has_begun(place) if resume == "if begun" else resume, None)
    assert not isinstance(experiment, ExperimentConfig)
    data = os.fspath(experiment)
    place = os.fspath(run_dir) if run_dir is not None else f"runs/{run_name(data)}"
    if has_begun(place) if resume == "if begun" else resume:
        config = load_config(place, overrides)
        return RunPlan(_with_data_at(config, data) if data_moved else config, place, True, None)
    recipe = choose_recipe(data, override_list(overrides), _machine(address))
    return RunPlan(recipe.config, place, False, recipe, recipe.index)


def _with_data_at(config: ExperimentConfig, path: str) -> ExperimentConfig:
    """The config with its data at another path, also where they are evaluated on."""
    before = config.data.path

    def moved(data: DataConfig | None) -> DataConfig | None:
        return data.model_copy(update={"path": path}) if data is not None and data.path == before else data

    splits = {name: moved(value) for name, value in config.evaluate if value is None or isinstance(value, DataConfig)}
    return config.model_copy(update={"data": moved(config.data), "evaluate": config.evaluate.model_copy(update=splits)})


def _machine(address: str | None) -> Machine:
    if address is None and not os.environ.get("RAY_ADDRESS"):
        return Machine.here()
    with ray_session(address):
        return cluster_machine()


def pretrain(
    experiment: ExperimentConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    overrides: Overrides = None,
    resume: Resume = False,
    data_moved: bool = False,
    minutes: float | None = None,
    strict: bool = False,
    address: str | None = None,
    watch: Callable[[ProgressUpdate], None] = _ignore,
) -> RunResult:
    """Pretrain an encoder; the record is the run directory.

    In the main thread, the first Ctrl-C stops the run at the next step with a checkpoint, and the second one stops it at once.

    Args:
        experiment: Images to train on (a folder, a glob, shards, a URI), for which a config is chosen as `plan_run` shows; or a config, an
            experiment's name, a YAML file, or a run directory.
        run_dir: Local path or URI. On a cluster of several nodes all of them must reach it. By default `runs/NAME`.
        overrides: Changes to the config, such as `{"train.epochs": 20}`.
        resume: Whether to continue the run that is in the run directory; "if begun" continues it if there is one.
        data_moved: The data of the run to resume may be elsewhere now (`data.path`), or copied again, if their content is the same.
        minutes: Train about so long: the first steps are timed, and the epochs chosen by their rate.
        strict: Refuse data of which anything is left out, instead of saying so.
        address: Address of a running Ray cluster. By default RAY_ADDRESS, or else Ray is started on this machine.
        watch: Called several times a second with the progress since the last call.

    Raises:
        FolderInUseError: another command is at work in the run directory.
        UsageError: the config, data, run directory or cluster do not allow the run; nothing was trained.
        RunFailedError: the run ended by an error.
    """
    how = {"resume": resume, "data_moved": data_moved, "minutes": minutes, "strict": strict, "address": address}
    plan = plan_run(experiment, run_dir, overrides=overrides, **how)
    with hold_folder(plan.run_dir, "pretrain"):
        return launch.pretrain(
            plan.config, plan.run_dir, resume=plan.resume, data_moved=data_moved, address=address, watch=watch, known=plan.index
        )


def lasting(config: ExperimentConfig, minutes: float, *, address: str | None = None, index: Index | None = None) -> ExperimentConfig:
    """The config with as many epochs as take about so many minutes here, by the rate of its first steps, which are trained and thrown away.

    Args:
        config: A run's config; its epochs are replaced.
        minutes: The whole time of training.
        address: As for `pretrain`.
        index: The index of its data, if it is known.

    Raises:
        UsageError: not one step fits, or the config does not allow the run.
        KeyboardInterrupt: a signal has ended the timing.
    """
    index = index or build_index(config.data)
    num_rows = index.num_rows
    batch = config.train.global_batch
    train = config.train.model_copy(update={"epochs": _TIMED_STEPS * batch / num_rows, "log_every": 1})
    timed = config.model_copy(update={"train": train, "evaluate": EvaluateConfig(final_test=False), "tracking": TrackingConfig()})
    rates: list[float] = []

    def watch(update: ProgressUpdate) -> None:
        rates.extend(report["images_per_s"] for report in update.reports if "images_per_s" in report)

    with tempfile.TemporaryDirectory() as folder:
        timing = launch.pretrain(timed, storage.join(folder, "timed"), resume=False, address=address, watch=watch, known=index)
    end_after(Notice(timing.stopped_by))
    rate = statistics.median(rates[len(rates) // 2 :])
    steps = int(rate * minutes * 60 / batch)
    if steps < 1:
        raise UsageError(f"one step takes {batch / rate / 60:.1f} minutes here, more than the {minutes:g} minutes given")
    epochs = round(steps * batch / num_rows, 3)
    warmup = min(config.optim.warmup_epochs, round(epochs / 10, 3))
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"epochs": epochs}),
            "optim": config.optim.model_copy(update={"warmup_epochs": warmup}),
        }
    )


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        scores: kNN and linear top-1, each in [0, 1], by encoder.
        chance: Top-1 of guessing the most frequent class.
        runs: Results of the runs that were started.
    """

    scores: dict[str, tuple[float, float]]
    chance: float
    runs: list[RunResult]


DEMO_RUNS = {"without style augmentation": "demo_plain", "with style augmentation": "demo"}
"""The demo's experiments by their difference."""


def run_demo(
    run_dir: str | None = None,
    *,
    address: str | None = None,
    watch: Callable[[str, ProgressUpdate], None] = lambda name, update: None,
) -> DemoResult:
    """Pretrain twice on the embedded data set, with and without style augmentation, and evaluate both encoders and an untrained one.

    Args:
        run_dir: Folder for the two runs. By default `runs/demo-DATE-TIME`.
        address: Address of a running Ray cluster, as for `pretrain`.
        watch: Called with an experiment's name and the progress of its run.

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
