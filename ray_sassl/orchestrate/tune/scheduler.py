"""Tune's schedulers with a study's settings, and the replay of trials of an earlier session to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler

from ray_sassl.process.errors import UsageError
from ray_sassl.study.record import StudyConfig, TrialRecord
from ray_sassl.study.space import Dimension
from ray_sassl.train.loop import EVALUATION

_HYPERBAND_BRACKETS = 3


def build_scheduler(study: StudyConfig, evaluations: int) -> TrialScheduler:
    """The study's scheduler; it looks at the first objective.

    Args:
        evaluations: How many evaluations a whole trial has.

    Raises:
        UsageError: the scheduler cannot work with this space.
    """
    goal, space = study.goals[0], study.space
    seen: dict[str, Any] = {"time_attr": EVALUATION, "metric": goal.metric, "mode": goal.mode}
    grace = min(space.grace, evaluations)
    match study.scheduler:
        case "asha":
            brackets = _HYPERBAND_BRACKETS if study.searcher == "hyperband-bayes" else 1
            return _Halving(
                _Draws(study.seed),
                **seen,
                max_t=evaluations,
                grace_period=grace,
                reduction_factor=space.reduction_factor,
                brackets=brackets,
            )
        case "median":
            return _Median(**seen, grace_period=grace, min_samples_required=3)
        case "pbt":
            return _population(study, seen, grace)
    return FIFOScheduler()


def _population(study: StudyConfig, seen: dict[str, Any], interval: int) -> TrialScheduler:
    """Population based training over the numbers of the space that have no condition (Jaderberg et al. 2017, arXiv 1711.09846)."""
    movable = {
        dimension.name: dimension
        for parameter in study.space.parameters
        if not parameter.when
        for dimension in parameter.dimensions()
        if dimension.choices is None
    }
    if not movable:
        raise UsageError("scheduler pbt changes numbers, and the space has none without a condition; use asha, median or fifo")
    if study.num_trials < 2:
        raise UsageError("scheduler pbt needs a population: --trials of 2 or more")

    def keep_in_range(config: dict[str, Any]) -> dict[str, Any]:
        point = {name: movable[name].tidy(value) if name in movable else value for name, value in config["point"].items()}
        return config | {"point": point}

    return _Population(
        _Draws(study.seed),
        **seen,
        perturbation_interval=interval,
        hyperparam_mutations={"point": {name: _anew(dimension) for name, dimension in movable.items()}},
        custom_explore_fn=keep_in_range,
        log_config=False,
    )


class _Draws:
    """A study's own random numbers for Tune's schedulers, which draw from the global generators of `random` and numpy."""

    def __init__(self, seed: int) -> None:
        self._states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

    @contextmanager
    def in_place_of_global_ones(self) -> Iterator[None]:
        """Draws in this block continue those of the last block; afterward the global generators are as they were before."""
        before = random.getstate(), np.random.get_state()
        _set_global(self._states)
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state()
            _set_global(before)


def _set_global(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


class _Halving(AsyncHyperBandScheduler):
    """Tune's, except that a trial stays in its bracket when it is added again, by a retry or after `replay_open`."""

    def __init__(self, draws: _Draws, **options: Any) -> None:
        super().__init__(**options)
        self._draws = draws

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if trial.trial_id not in self._trial_info:
            with self._draws.in_place_of_global_ones():  # it draws the trial's bracket
                super().on_trial_add(tune_controller, trial)


class _Median(MedianStoppingRule):
    """Tune's, except that a trial's last report may lack an evaluation: an interrupted run ends without one."""

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        if self._time_attr in result and self._metric in result:
            super().on_trial_complete(tune_controller, trial, result)


class _Population(PopulationBasedTraining):
    """Tune's, except that the first points may come from a searcher, and that a trial keeps its own number, and so its own folder, when it
    continues from another trial's checkpoint."""

    def __init__(self, draws: _Draws, **options: Any) -> None:
        super().__init__(**options)
        self._draws = draws

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(cast(Any, _NoController()), trial)  # it only asks the controller for a searcher, to refuse it

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        with self._draws.in_place_of_global_ones():  # it draws donors and perturbations
            return super().on_trial_result(tune_controller, trial, result)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return config | {"number": trial.config["number"], "donor": trial_to_clone.config["number"]}, operations


def _anew(dimension: Dimension) -> Any:
    """Tune's form of a fresh draw from the dimension."""
    if dimension.is_int:
        return (tune.lograndint if dimension.is_log else tune.randint)(int(dimension.low), int(dimension.high) + 1)
    return (tune.loguniform if dimension.is_log else tune.uniform)(dimension.low, dimension.high)


@dataclass(frozen=True)
class _EarlierTrial:
    """Stands for a trial of an earlier session; schedulers ask for no more of it."""

    trial_id: str
    status: str = "TERMINATED"


def replay(scheduler: TrialScheduler, trials: Sequence[TrialRecord]) -> None:
    """Show the scheduler the curves of earlier trials, so that it compares later ones with them.

    Population based training gets none: it compares trials that are running.
    """
    for record in trials:
        trial = cast(Any, _EarlierTrial(f"earlier-{record.number}"))
        if isinstance(scheduler, AsyncHyperBandScheduler):
            _replay_rungs(scheduler, trial, record)
        elif isinstance(scheduler, MedianStoppingRule) and record.curve:
            # Given results one by one, it would decide about these trials, and it ignores a trial that it has once stopped.
            scheduler._results[trial] += _results(record)


def replay_open(scheduler: TrialScheduler, trial_id: str, record: TrialRecord) -> None:
    """Show successive halving the earlier curve of a trial that continues, under its present id, so that it stands at the rungs that it has
    passed. Otherwise its next evaluation would be counted for the last of them, among values of fewer steps."""
    if isinstance(scheduler, AsyncHyperBandScheduler):
        _replay_rungs(scheduler, cast(Any, _EarlierTrial(trial_id)), record)


def _replay_rungs(scheduler: AsyncHyperBandScheduler, trial: Trial, record: TrialRecord) -> None:
    controller = cast(Any, _NoController())
    scheduler.on_trial_add(controller, trial)
    for result in _results(record):
        scheduler.on_trial_result(controller, trial, result)


def _results(record: TrialRecord) -> list[dict[str, float]]:
    """The trial's curve as it was reported to Tune."""
    return [evaluation.metrics | {EVALUATION: evaluation.number} for evaluation in record.curve]


class _NoController:
    """Stands for Tune's controller in calls that do not need one."""

    search_alg = None

    def get_live_trials(self) -> list[Any]:
        return []

    get_trials: Callable[..., list[Any]] = get_live_trials
