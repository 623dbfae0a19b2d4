"""The record of a study: a folder with the study's config, a folder and a `trial.json` for each trial, and tables of all of them.

study.yaml  index.arrow  trials/0003/{trial.json, config.yaml, metrics.jsonl, checkpoints/, ...}  trials.parquet  trials.csv  best.yaml

A trial's folder is the run directory of its pretraining run. A study's whole state is in these files, so a study whose driver was killed
continues from them, without asking Ray.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import explain
from ray_sassl.config.roles import differing_paths
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.sources import path_around
from ray_sassl.files import storage
from ray_sassl.files.json_files import LARGEST_NUMBER, as_number, read_json
from ray_sassl.files.own import mark_folder
from ray_sassl.files.paths import check_inside
from ray_sassl.files.safe_yaml import load_file
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.console import csv_cell, printable
from ray_sassl.process.errors import UsageError
from ray_sassl.study.searcher import Known
from ray_sassl.study.space import Objective, Point, SearchSpace

log = logging.getLogger(__name__)

STUDY, TRIAL, BEST, INDEX = "study.yaml", "trial.json", "best.yaml", "index.arrow"
State = Literal["running", "finished", "stopped", "failed", "interrupted"]
"""`stopped`: by the scheduler, before its end. `interrupted`: by the user or the end of the time budget; --resume continues it."""


class StudyDirectoryError(UsageError):
    """The study directory does not fit the command: it contains another study, or none."""


class StudyConfig(FrozenConfig):
    """One whole study. For equal studies with one trial at a time, the searcher suggests the same points."""

    name: str
    base: ExperimentConfig
    space: SearchSpace
    objectives: tuple[str, ...]
    searcher: str
    scheduler: str
    num_trials: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    max_concurrent: int | None = Field(default=None, ge=1)
    """Concurrent trials; by default as many as the cluster has room for."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """After this time the running trials are stopped with a checkpoint; a resumed study starts with the whole budget again."""
    retries: int = Field(default=1, ge=0)
    """How often a failed trial is restarted from its last checkpoint."""

    @property
    def goals(self) -> list[Objective]:
        """The objectives, parsed."""
        return [Objective.parse(text) for text in self.objectives]


_DATA_PATH = "base.data.path"
RESUME_MAY_CHANGE = ("num_trials", "max_concurrent", "time_budget_s", "retries")


@dataclass(frozen=True)
class Evaluation:
    """A trial's report at one evaluation.

    Attributes:
        number: 1 for the first evaluation of the run.
        metrics: All metrics known then, including `step` and `epoch`.
        wall_s: Seconds of work on the trial until then, over all its attempts.
    """

    number: int
    metrics: dict[str, float]
    wall_s: float


@dataclass
class TrialRecord:
    """One trial, from its suggestion to its outcome.

    Attributes:
        number: Counted from 0, in the order of suggestion.
        point: Its point in the space; population based training changes it.
        state: Its outcome so far.
        curve: Its evaluations, in order.
        reason: Why it failed, or was stopped.
        attempts: How often it was started.
        wall_s: Seconds of work on it.
        cpu_s: CPU seconds of the trial's process if the whole run takes place in it, else None.
        moves: Changes by population based training: the `donor`, whose checkpoint the trial continued from, the new `point`, and the first
            `evaluation` there.
    """

    number: int
    point: Point
    state: State = "running"
    curve: list[Evaluation] = field(default_factory=list)
    reason: str | None = None
    attempts: int = 0
    wall_s: float = 0.0
    cpu_s: float | None = None
    moves: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """How far it has come, at its last evaluation."""
        return self.curve[-1].metrics.get("epoch", 0.0) if self.curve else 0.0

    def value(self, metric: str) -> float | None:
        """The metric at the last evaluation that has it as a finite number."""
        found = [e.metrics[metric] for e in self.curve if math.isfinite(e.metrics.get(metric, math.nan))]
        return found[-1] if found else None

    def values(self, goals: Sequence[Objective]) -> tuple[float, ...]:
        """All objectives, or an empty tuple if one is missing."""
        values = tuple(self.value(goal.metric) for goal in goals)
        return tuple(value for value in values if value is not None) if None not in values else ()

    def known(self, goals: Sequence[Objective]) -> Known | None:
        """The trial as the searcher sees it; None for a failed trial."""
        if self.state == "failed":
            return None
        metric = goals[0].metric
        curve = {e.number: e.metrics[metric] for e in self.curve if math.isfinite(e.metrics.get(metric, math.nan))}
        state = "running" if self.state == "interrupted" else self.state
        return Known(self.point, state, self.values(goals), curve)

    @property
    def is_open(self) -> bool:
        """Whether the trial is not over yet."""
        return self.state in ("running", "interrupted")


def ranked(trials: Sequence[TrialRecord], goal: Objective) -> list[TrialRecord]:
    """The evaluated trials, the best first; those that are not finished after all that are, and failed ones last."""
    return sorted(
        (trial for trial in trials if trial.value(goal.metric) is not None),
        key=lambda trial: (
            trial.state != "finished",
            trial.state == "failed",
            -goal.sign * (trial.value(goal.metric) or 0.0),
            trial.number,
        ),
    )


def best_trial(trials: Sequence[TrialRecord], goal: Objective) -> TrialRecord | None:
    """The best of the finished trials; if there is none, of all evaluated trials."""
    return next(iter(ranked(trials, goal)), None)


def figure(metric: str, value: float | None) -> str:
    """A value of an objective as text."""
    if value is None:
        return "–"
    return f"{value:.2%}" if metric.endswith(("top1", "top5")) else f"{value:.4g}"


def pareto_front(trials: Sequence[TrialRecord], goals: Sequence[Objective]) -> list[TrialRecord]:
    """The finished trials (or all, if none finished) that no other trial dominates: better in one objective and at least as good in all."""
    pool = [trial for trial in trials if trial.values(goals) and trial.state == "finished"]
    pool = pool or [trial for trial in trials if trial.values(goals)]

    def gains(trial: TrialRecord) -> tuple[float, ...]:
        return tuple(goal.sign * value for goal, value in zip(goals, trial.values(goals), strict=True))

    def beats(other: TrialRecord, trial: TrialRecord) -> bool:
        return all(o >= t for o, t in zip(gains(other), gains(trial), strict=True)) and gains(other) != gains(trial)

    return [trial for trial in pool if not any(beats(other, trial) for other in pool)]


def trial_dir(study_dir: str, number: int) -> str:
    """The run directory of a trial."""
    return storage.join(study_dir, "trials", f"{number:04d}")


def open_study(study: StudyConfig, study_dir: str, *, resume: bool, data_moved: bool = False) -> list[TrialRecord]:
    """Make the study directory, or check that the one to resume contains this study; returns its trials.

    Args:
        data_moved: For a study to resume: its data may be at another path.

    Raises:
        StudyDirectoryError: there is a study and `resume` is not set, there is none to resume, or it is another one.
    """
    there = storage.exists(storage.join(study_dir, STUDY))
    if there and not resume:
        raise StudyDirectoryError(f"{study_dir} already contains a study; add --resume to continue it, or give another --study-dir")
    if not there and storage.list_dir(storage.join(study_dir, "trials")):
        raise StudyDirectoryError(
            f"{study_dir} already contains trials, but not their {STUDY}. Restore that file to resume them, or give another --study-dir."
        )
    if resume and not there:
        raise StudyDirectoryError(f"{study_dir} contains no study to resume (no {STUDY}); leave out --resume to start one there")
    if resume:
        before, after = (s.model_dump(mode="json", exclude=set(RESUME_MAY_CHANGE)) for s in (read_study(study_dir), study))
        if differing := [path for path in differing_paths(before, after) if not (data_moved and path == _DATA_PATH)]:
            hint = "; if the same data are elsewhere now, add --data-moved" if differing == [_DATA_PATH] else ""
            raise StudyDirectoryError(
                f"the study to resume has another {', '.join(differing)}{hint}; a resumed study may change only "
                f"{', '.join(RESUME_MAY_CHANGE)}"
            )
        if _chose_by_test_images(study_dir):
            log.warning(
                "The trials in %s were scored on evaluate.test by an older version. The next ones are scored on evaluate.validation, so "
                "their scores differ from the earlier ones; start a new study to choose by validation images alone.",
                study_dir,
            )
    storage.makedirs(study_dir)
    own = (STUDY, INDEX, BEST, "trials", "trials.parquet", "trials.csv", "report.html")
    if not mark_folder(study_dir, own) and not resume and (path := path_around(study.base.data, study_dir)):
        raise StudyDirectoryError(f"{study_dir} lies in the data ({path}) and holds other files; give a new or empty folder")
    storage.write_text(storage.join(study_dir, STUDY), yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, width=120))
    return read_trials(study_dir)


_Settings = TypeVar("_Settings", bound=FrozenConfig)


def read_study(study_dir: str) -> StudyConfig:
    """The config of the study in the directory.

    Raises:
        StudyDirectoryError: there is none, or it cannot be read.
    """
    return read_settings(StudyConfig, study_dir, STUDY, "study")


def read_settings(model: type[_Settings], study_dir: str, name: str, what: str) -> _Settings:
    """The settings in a YAML file of a study directory.

    Args:
        name: The file's name.
        what: What the directory would be with it, in words.

    Raises:
        StudyDirectoryError: there is none, or it cannot be read.
    """
    path = storage.join(study_dir, name)
    if not storage.exists(path):
        raise StudyDirectoryError(f"{study_dir} contains no {what} (no {name})")
    check_inside(path, study_dir)
    try:
        return model.model_validate(load_file(path))
    except ValidationError as error:
        raise StudyDirectoryError(f"{path}: {explain(error)}") from error


def _chose_by_test_images(study_dir: str) -> bool:
    """Whether the study was begun when there were no validation images."""
    tree = load_file(storage.join(study_dir, STUDY))
    return (tree["base"].get("evaluate") or {"validation": 0}).get("validation") is None and storage.exists(
        storage.join(study_dir, "trials")
    )


@dataclass(frozen=True)
class StudyRecord:
    """A study directory, read for people.

    Attributes:
        path: The study directory.
        study: What is searched.
        trials: By number.
        left_out: What lies in the directory and could not be used, in words.
    """

    path: str
    study: StudyConfig
    trials: list[TrialRecord]
    left_out: tuple[str, ...] = ()


def read_record(study_dir: str) -> StudyRecord:
    """The study and its trials. A trial whose record is damaged, or of another study, is left out with a word.

    Raises:
        StudyDirectoryError: there is no study, or its config cannot be read.
    """
    study = read_study(study_dir)
    trials, left_out = [], []
    for path in _trial_paths(study_dir):
        try:
            trial = _read_trial(path, study_dir)
            _check_point(trial, study.space, path)
        except UsageError as error:
            left_out.append(f"{error}; the trial is left out")
            log.warning("%s", left_out[-1])
        else:
            trials.append(trial)
    return StudyRecord(study_dir, study, sorted(trials, key=lambda trial: trial.number), tuple(left_out))


def read_trials(study_dir: str) -> list[TrialRecord]:
    """All trials of the study, in order.

    Raises:
        UsageError: the record of one is damaged. A study that went on without it would try its number again.
    """
    try:
        return sorted((_read_trial(path, study_dir) for path in _trial_paths(study_dir)), key=lambda trial: trial.number)
    except StudyDirectoryError as error:
        raise StudyDirectoryError(f"{error}; remove the trial's folder, and the trial is done again") from error


def _trial_paths(study_dir: str) -> list[str]:
    folders = [entry.path for entry in storage.list_dir(storage.join(study_dir, "trials")) if not entry.is_file]
    return [path for folder in folders if storage.exists(path := storage.join(folder, TRIAL))]


def _read_trial(path: str, study_dir: str) -> TrialRecord:
    """The trial in the file.

    Raises:
        StudyDirectoryError: it is damaged, or not the record of this trial.
    """
    try:
        check_inside(path, study_dir)
        trial = _TRIAL.validate_python(read_json(path))
    except ValidationError as error:
        raise StudyDirectoryError(f"{path} is not the record of a trial: {explain(error)}") from error
    except UsageError as error:
        raise StudyDirectoryError(str(error)) from error
    values = [value for evaluation in trial.curve for value in evaluation.metrics.values()]
    if any(abs(value) > LARGEST_NUMBER for value in (*values, trial.wall_s, trial.number, trial.attempts) if math.isfinite(value)):
        raise StudyDirectoryError(f"{path} holds numbers beyond {LARGEST_NUMBER:g}")
    if not math.isfinite(trial.wall_s) or storage.name_of(storage.parent(path)) != storage.name_of(trial_dir(study_dir, trial.number)):
        raise StudyDirectoryError(f"{path} is the record of another trial: {trial.number}")
    return trial


def _check_point(trial: TrialRecord, space: SearchSpace, path: str) -> None:
    """See that the trial is one of the space.

    Raises:
        StudyDirectoryError: it is not.
    """
    for dimension in space.dimensions:
        value = trial.point.get(dimension.name)
        if dimension.name not in trial.point:
            continue
        number = as_number(value)
        if (
            value not in dimension.choices
            if dimension.choices is not None
            else number is None or not dimension.low <= number <= dimension.high
        ):
            raise StudyDirectoryError(f"{path}: {dimension.name} is {str(value)[:80]}, which the study's space does not have")


_TRIAL = TypeAdapter(TrialRecord)


def write_trial(study_dir: str, trial: TrialRecord) -> None:
    """Write the trial's record to its folder atomically."""
    storage.write_text(storage.join(trial_dir(study_dir, trial.number), TRIAL), json.dumps(asdict(trial)))


def write_tables(study: StudyConfig, study_dir: str, trials: Sequence[TrialRecord]) -> None:
    """Write `trials.parquet` and `trials.csv` with one row per trial, and `best.yaml`, the best trial as an experiment."""
    rows = [_row(study, study_dir, trial) for trial in trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    points = {name: _of_one_type(values) for name, values in columns.items() if name.startswith("point.")}
    table = pa.table(columns | points)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(study_dir, "trials.parquet"), buffer.getvalue())
    flat = columns | points | {name: [json.dumps(value) for value in columns[name]] for name in ("curve", "moves") if name in columns}
    storage.write_bytes(storage.join(study_dir, "trials.csv"), _csv(flat))
    if (best := best_trial(trials, study.goals[0])) is not None:
        storage.write_text(storage.join(study_dir, BEST), to_yaml(best_config(study, best)))


def _csv(columns: dict[str, list[Any]]) -> bytes:
    """The columns as CSV that a spreadsheet takes for data: no cell of text, and no column's name, begins a formula."""
    quoted = {
        csv_cell(name): [csv_cell(value) if isinstance(value, str) else value for value in values] for name, values in columns.items()
    }
    buffer = io.BytesIO()
    pacsv.write_csv(pa.table(quoted), buffer)
    return buffer.getvalue()


def best_config(study: StudyConfig, trial: TrialRecord) -> ExperimentConfig:
    """The trial as an experiment."""
    return study.space.config(study.base, trial.point).model_copy(update={"name": f"{study.name}_best"})


def _row(study: StudyConfig, study_dir: str, trial: TrialRecord) -> dict[str, Any]:
    last = trial.curve[-1].metrics if trial.curve else {}
    return {
        "trial": trial.number,
        "state": trial.state,
        "reason": printable(trial.reason) if trial.reason is not None else None,
        "attempts": trial.attempts,
        "evaluations": len(trial.curve),
        "epochs": last.get("epoch", 0.0),
        "wall_s": trial.wall_s,
        "cpu_s": trial.cpu_s,
        **{printable(goal.metric): trial.value(goal.metric) for goal in study.goals},
        "images_per_s": trial.value("images_per_s"),
        **{f"point.{d.name}": trial.point.get(d.name) for d in study.space.dimensions},
        "run_dir": trial_dir(study_dir, trial.number),
        "curve": [
            {"evaluation": e.number, "wall_s": e.wall_s, **{printable(k): float(v) for k, v in e.metrics.items()}} for e in trial.curve
        ],
        "moves": [json.dumps(move) for move in trial.moves],
    }


def _of_one_type(values: list[Any]) -> list[Any]:
    """The values unchanged if they are all numbers or all strings, else as strings."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
