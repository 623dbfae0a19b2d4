"""Searches from Python: run, report and compare studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ray_sassl.config.overrides import apply_overrides, strictly
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.pipeline import CropBlock
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, load_config, override_list
from ray_sassl.runs.dosing import style_curve
from ray_sassl.runs.pictures import read_block
from ray_sassl.runs.process import build_style_augmentation
from ray_sassl.study.compare import comparison, comparison_html
from ray_sassl.study.record import BEST, STUDY, StudyConfig, StudyRecord, TrialRecord, read_record, read_study, write_tables
from ray_sassl.study.report import write_report
from ray_sassl.study.space import Dose, Objective, SearchSpace
from ray_sassl.style.dose import Curve
from tune_spaces import SpaceSource, load_space, spaces

if TYPE_CHECKING:
    from ray_sassl.api.pretraining import Resume
    from ray_sassl.orchestrate.tune.search import StudyState


@dataclass(frozen=True)
class StudyResult:
    """The current state of a study.

    Attributes:
        study: The study's config.
        study_dir: The study directory.
        trials: Trials by number.
        report: The HTML page.
        best: The best trial as an experiment (YAML) that `pretrain` takes, or None if no trial has a score.
        is_interrupted: Whether the search was stopped before its end; `resume` continues it.
        stopped_by: The signal that stopped it, such as "SIGTERM", or None.
    """

    study: StudyConfig
    study_dir: str
    trials: list[TrialRecord]
    report: str
    best: str | None
    is_interrupted: bool = False
    stopped_by: str | None = None


def make_study(
    space: str | os.PathLike[str] | SearchSpace,
    *,
    experiment: ExperimentConfig | str | None = None,
    overrides: Overrides = None,
    trials: int | None = None,
    searcher: str | None = None,
    scheduler: str | None = None,
    grace: int | None = None,
    objectives: Sequence[str] = (),
    strict: bool = False,
    **fields: Any,
) -> StudyConfig:
    """The study of a space with its base experiment and the caller's settings; the arguments are those of `search`.

    Raises:
        UsageError: the space, the experiment or a setting is wrong.
    """
    source = _source(space, experiment)
    given = override_list(overrides)
    base = load_config(experiment or source.experiment, given)
    found = source.space(base)
    if found.overrides:
        base = load_config(experiment or source.experiment, [*found.overrides, *given])
        found = source.space(base)
    found = found.without(given) if given else found
    if grace:
        found = found.model_copy(update={"grace": grace})
    goals = [Objective.parse(text) for text in objectives or found.objectives]
    if len({goal.metric for goal in goals}) < len(goals):
        raise UsageError(f"--objective {' --objective '.join(objectives)}: each metric may be given once")
    if online := _online({goal.metric for goal in goals}, base):
        base = apply_overrides(base, [f"evaluate.online={online}"])
    base = strictly(base) if strict else base
    searcher = searcher or found.searcher
    num_trials = trials or (sum(1 for _ in found.grid(base)) if searcher == "grid" else found.num_trials)
    return StudyConfig(
        name=source.name,
        base=base,
        space=found,
        objectives=tuple(str(goal) for goal in goals),
        searcher=searcher,  # pyright: ignore[reportArgumentType]
        scheduler=scheduler or found.scheduler,  # pyright: ignore[reportArgumentType]
        num_trials=num_trials,
        **fields,
    )


def with_doses(study: StudyConfig, begun: str | None) -> StudyConfig:
    """The study with the curves of its doses: measured on its images, or those that were recorded when the study was begun.

    Args:
        begun: The study directory, if the study is resumed.
    """
    if not any(isinstance(parameter, Dose) for parameter in study.space.parameters):
        return study
    if begun is not None:
        recorded = {p.key: p.curves for p in read_study(begun).space.parameters if isinstance(p, Dose)}
        known = (
            p.model_copy(update={"curves": recorded.get(p.key, p.curves)}) if isinstance(p, Dose) else p for p in study.space.parameters
        )
        study = study.model_copy(update={"space": study.space.model_copy(update={"parameters": tuple(known)})})

    @cache
    def block() -> CropBlock:
        return read_block(study.base)[1]

    def measure(config: ExperimentConfig) -> Curve:
        style = build_style_augmentation(config, "cpu", 1)
        assert style is not None
        return style_curve(config, block(), style)

    return study.model_copy(update={"space": study.space.with_curves(study.base, measure)})


def _source(space: str | os.PathLike[str] | SearchSpace, experiment: ExperimentConfig | str | None) -> SpaceSource:
    if not isinstance(space, SearchSpace):
        return load_space(os.fspath(space))
    if experiment is None:
        raise UsageError("a `SearchSpace` has no base experiment; give one: experiment=...")
    return SpaceSource("study", "", "", lambda base: space)


def _online(metrics: set[str], base: ExperimentConfig) -> str | None:
    """The value of `evaluate.online` that the objectives need, or None if it is already set so."""
    if "linear_top1" not in metrics or base.evaluate.online != "knn":
        return None
    return "both" if "knn_top1" in metrics else "linear"


def search(
    space: str | os.PathLike[str] | SearchSpace,
    study_dir: str | None = None,
    *,
    experiment: ExperimentConfig | str | None = None,
    overrides: Overrides = None,
    trials: int | None = None,
    time_budget_s: float | None = None,
    max_concurrent: int | None = None,
    searcher: str | None = None,
    scheduler: str | None = None,
    grace: int | None = None,
    objectives: Sequence[str] = (),
    strict: bool = False,
    seed: int = 0,
    retries: int = 1,
    resume: Resume = False,
    data_moved: bool = False,
    address: str | None = None,
    watch: Callable[[StudyState], None] = lambda state: None,
) -> StudyResult:
    """Run a study on Ray Tune: each trial is a whole pretraining run; the record is the study directory.

    Args:
        space: A space's name, a `.py` or `.yaml` file, or a `SearchSpace` (then `experiment` is needed).
        study_dir: Local path or URI. By default `studies/SPACE`.
        experiment: Another base experiment: a config, a name, a YAML file or a run directory.
        overrides: Changes to the base experiment; the fields that they set are not searched.
        trials: Number of trials; by default the space's, and for a grid all points.
        time_budget_s: Seconds after which running trials are stopped with a checkpoint.
        max_concurrent: Concurrent trials; by default as many as the cluster has room for.
        searcher: "random", "grid", "optuna" or "hyperband-bayes"; by default the space's.
        scheduler: "fifo", "asha", "pbt" or "median"; by default the space's.
        grace: Evaluations that a trial gets before it may be stopped; by default the space's.
        objectives: Metrics, or `METRIC:min`; several give a Pareto front, and the first one decides on stops. By default the space's.
        strict: Refuse data of which anything is left out, instead of saying so.
        seed: Seed of the suggestions; a trial's own seed is the experiment's.
        retries: How often a failed trial is restarted from its checkpoint.
        resume: Whether to continue the study in the study directory; "if begun" continues it if there is one.
        data_moved: The data of the study to resume may be elsewhere now, or copied again, if their content is the same.
        address: Address of a running Ray cluster, as for `pretrain`.
        watch: Called several times a second with the state of the study.

    Raises:
        FolderInUseError: another command is at work in the study directory.
        UsageError: the space, the experiment, the study directory or the cluster do not allow the study.
    """
    from ray_sassl.orchestrate.tune.search import search as run_search

    if data_moved and not resume:
        raise UsageError("--data-moved is for a study that is resumed; leave it out of a new one")
    study = make_study(
        space,
        experiment=experiment,
        overrides=overrides,
        trials=trials,
        searcher=searcher,
        scheduler=scheduler,
        grace=grace,
        objectives=objectives,
        strict=strict,
        seed=seed,
        retries=retries,
        max_concurrent=max_concurrent,
        time_budget_s=time_budget_s,
    )
    place = study_dir or f"studies/{study.name}"
    with hold_folder(place, "search"):
        there = storage.exists(storage.join(place, STUDY))
        goes_on = there if resume == "if begun" else resume
        study = with_doses(study, place if goes_on and there else None)
        state = run_search(study, place, resume=goes_on, data_moved=data_moved, address=address, watch=watch)
    is_interrupted = any(trial.state == "interrupted" for trial in state.records) or (
        state.is_stopping and len(state.records) < study.num_trials
    )
    record = StudyRecord(place, state.study, state.records)
    return replace(_result(record), is_interrupted=is_interrupted, stopped_by=state.stopped_by)


def _result(record: StudyRecord) -> StudyResult:
    best = storage.join(record.path, BEST)
    return StudyResult(record.study, record.path, record.trials, write_report(record), best if storage.exists(best) else None)


def list_spaces() -> dict[str, SpaceSource]:
    """The search spaces by name."""
    return spaces()


def report_study(study_dir: str) -> StudyResult:
    """Write a study's tables and its report, even while it is running.

    Raises:
        StudyDirectoryError: no study is there.
    """
    record = read_record(study_dir)
    write_tables(record.study, study_dir, record.trials)
    return _result(record)


def compare_studies(first: str, second: str, out: str | None = "compare.html") -> list[tuple[str, ...]]:
    """Compare two studies: rows with a title and the value in each study.

    Args:
        first: A study directory.
        second: Another one.
        out: Path or URI of an HTML page, or None.

    Raises:
        StudyDirectoryError: no study is there.
    """
    records = [read_record(path) for path in (first, second)]
    if out is not None:
        storage.write_text(out, comparison_html(records))
    return comparison(records)
