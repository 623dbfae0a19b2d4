"""The next point to try: a pure function of the study's seed, the trial's number and the trials so far.

There is no other state, so a study that continues after a crash tries the same points as one that was not interrupted.
`optuna` is the tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna, with conditional and several objectives.
`hyperband-bayes` uses it like BOHB (Falkner, Klein and Hutter 2018, arXiv 1807.01774, section 4): it learns from the values at the largest
budget that enough trials have reached.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Dimension, Objective, Point, Scalar, SearchSpace

_NUM_RANDOM = 8
"""Random trials before the estimator is used (our choice; Optuna's default is 10)."""
_NUM_ATTEMPTS = 10


@dataclass(frozen=True)
class Known:
    """What the searcher knows about a trial.

    Attributes:
        point: Its point in the space.
        state: `running`, `finished` or `stopped` early; failed trials are left out.
        values: The objectives at its last evaluation; empty before the first.
        curve: The first objective by number of evaluation.
    """

    point: Point
    state: Literal["running", "finished", "stopped"]
    values: tuple[float, ...] = ()
    curve: dict[int, float] = field(default_factory=dict)


def suggest(
    space: SearchSpace,
    base: ExperimentConfig,
    known: Sequence[Known],
    number: int,
    *,
    seed: int,
    searcher: str,
    objectives: Sequence[Objective] = (Objective("knn_top1", "max"),),
) -> Point | None:
    """The point of trial `number`, or None if a grid has no more. If a drawn point was tried already, it is drawn again, a few times."""
    if searcher == "grid":
        return next(itertools.islice(space.grid(base), number, None), None)
    tried = [trial.point for trial in known]
    trials = _at_largest_budget(known, len(space.dimensions)) if searcher == "hyperband-bayes" else list(known)
    point: Point = {}
    for attempt in range(_NUM_ATTEMPTS):
        rng = np.random.default_rng([seed, number, attempt])
        if searcher == "random" or len(known) < _NUM_RANDOM:
            point = space.draw(base, lambda dimension, rng=rng: dimension.at(rng.random()))
        else:
            point = _ask_optuna(space, base, trials, int(rng.integers(2**31)), objectives)
        if point not in tried:
            break
    return point


def _at_largest_budget(known: Sequence[Known], num_dimensions: int) -> list[Known]:
    """The trials with their values at the largest budget that enough of them have reached, as if they had ended there."""
    enough = min(num_dimensions + 1, _NUM_RANDOM)
    budgets = sorted({budget for trial in known for budget in trial.curve}, reverse=True)
    for budget in budgets:
        reached = [Known(trial.point, "finished", (trial.curve[budget],)) for trial in known if budget in trial.curve]
        if len(reached) >= enough:
            return reached + [trial for trial in known if trial.state == "running" and budget not in trial.curve]
    return list(known)


def _ask_optuna(space: SearchSpace, base: ExperimentConfig, known: Sequence[Known], seed: int, objectives: Sequence[Objective]) -> Point:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna_study(space, known, objectives, seed)
        trial = study.ask()
        return space.draw(base, lambda dimension: _suggest(trial, dimension))


def optuna_study(space: SearchSpace, known: Sequence[Known], objectives: Sequence[Objective], seed: int) -> Any:
    """An Optuna study in memory with the known trials."""
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Conditional dimensions that occur together are modeled as groups; running trials count as bad, which spreads parallel ones.
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=True)
    directions = [StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE for objective in objectives]
    study = optuna.create_study(directions=directions, sampler=sampler)
    distributions = {dimension.name: _distribution(dimension) for dimension in space.dimensions}
    for trial in known:
        point = {name: value for name, value in trial.point.items() if name in distributions}
        shared: dict[str, Any] = {"params": point, "distributions": {name: distributions[name] for name in point}}
        if not trial.values:
            study.add_trial(create_trial(state=TrialState.RUNNING, **shared))
        elif trial.state == "finished" or len(objectives) > 1:
            study.add_trial(create_trial(values=trial.values, **shared))
        else:
            state = TrialState.PRUNED if trial.state == "stopped" else TrialState.RUNNING
            study.add_trial(create_trial(state=state, intermediate_values=trial.curve, **shared))
    return study


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    if dimension.is_int:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def _suggest(trial: Any, dimension: Dimension) -> Scalar:
    if dimension.choices is not None:
        return trial.suggest_categorical(dimension.name, dimension.choices)
    if dimension.is_int:
        return trial.suggest_int(dimension.name, int(dimension.low), int(dimension.high), log=dimension.is_log)
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.is_log)
