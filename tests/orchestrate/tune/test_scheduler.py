"""Schedulers evaluate later trials by those of an earlier session, and refuse what they cannot do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from ray_sassl.orchestrate.tune import search
from ray_sassl.orchestrate.tune.scheduler import build_scheduler, replay
from ray_sassl.orchestrate.tune.search import StudyState
from ray_sassl.process.errors import UsageError
from ray_sassl.study.space import Choice, SearchSpace
from ray_sassl.train.loop import EVALUATION
from tests.orchestrate.simulated import simulated_study
from tests.study.test_record import make_trial


@dataclass(frozen=True)
class _Trial:
    trial_id: str


def _decide(scheduler: TrialScheduler, value: float, evaluation: int = 1, trial_id: str = "new") -> str:
    class _Controller:
        def get_live_trials(self) -> list[Any]:
            return []

    trial = cast(Any, _Trial(trial_id))
    scheduler.on_trial_add(cast(Any, _Controller()), trial)
    return scheduler.on_trial_result(cast(Any, _Controller()), trial, {EVALUATION: evaluation, "knn_top1": value})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_that_has_seen_earlier_trials_stops_a_bad_one_and_keeps_a_good_one(name):
    earlier = [make_trial(number, [value]) for number, value in enumerate((0.3, 0.4, 0.5, 0.6))]
    for value, decision in ((0.1, TrialScheduler.STOP), (0.9, TrialScheduler.CONTINUE)):
        scheduler = build_scheduler(simulated_study(scheduler=name), evaluations=9)
        replay(scheduler, earlier)
        assert _decide(scheduler, value) == decision
    assert _decide(build_scheduler(simulated_study(scheduler=name), evaluations=9), 0.1) == TrialScheduler.CONTINUE


def test_a_median_goes_on_from_trials_that_it_would_have_stopped_itself_and_from_one_without_an_evaluation():
    curves = [[0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.1, 0.1, 0.1], []]
    scheduler = build_scheduler(simulated_study(scheduler="median"), evaluations=9)
    replay(scheduler, [make_trial(number, curve) for number, curve in enumerate(curves)])
    assert _decide(scheduler, 0.1) == TrialScheduler.STOP
    assert _decide(scheduler, 0.9, evaluation=2, trial_id="better") == TrialScheduler.CONTINUE


def test_a_median_takes_no_notice_of_an_end_that_is_no_evaluation():
    scheduler = build_scheduler(simulated_study(scheduler="median"), evaluations=9)
    replay(scheduler, [make_trial(number, [0.5]) for number in range(3)])
    for end in ({"done": True, "ended": "interrupted"}, {EVALUATION: 1, "done": True}):
        scheduler.on_trial_complete(cast(Any, None), cast(Any, _Trial("interrupted")), end)
    assert _decide(scheduler, 0.1) == TrialScheduler.STOP


@pytest.mark.parametrize("searcher", ["optuna", "hyperband-bayes"])  # one bracket, and several
def test_a_trial_that_goes_on_stands_at_the_rungs_that_it_has_passed(searcher: str):
    def cutoffs(scheduler: Any) -> list[dict[float, float]]:
        return [{milestone: bracket.cutoff(recorded) for milestone, recorded in bracket._rungs} for bracket in scheduler._brackets]

    for seed in range(10):
        study = simulated_study(searcher=searcher, seed=seed)
        state = StudyState(study, "unused", {0: make_trial(0, [n / 100 for n in range(1, 21)], "interrupted")})
        scheduler = build_scheduler(study, evaluations=27)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "write_trial", lambda study_dir, record: None)
            suggestion = search.RecordSearcher(state, scheduler).suggest("new")
        assert cast(Any, suggestion)["number"] == 0
        before = cutoffs(scheduler)
        assert _decide(scheduler, 0.21, evaluation=21) == TrialScheduler.CONTINUE
        assert cutoffs(scheduler) == before
        assert sum(rungs.get(9) == pytest.approx(0.09) for rungs in before) == 1


def test_successive_halving_draws_brackets_by_the_studys_seed():
    def brackets(seed: int) -> list[int]:
        study = simulated_study(searcher="hyperband-bayes", seed=seed)
        scheduler = cast(Any, build_scheduler(study, evaluations=27))
        for number in range(30):
            scheduler.on_trial_add(None, _Trial(f"trial {number}"))
        return [scheduler._brackets.index(scheduler._trial_info[f"trial {number}"]) for number in range(30)]

    with _global_generators_as_they_were():
        assert brackets(seed=0) == brackets(seed=0)
        assert brackets(seed=0) != brackets(seed=1)


def test_population_based_training_draws_donors_from_a_generator_of_its_own():
    class _Member:
        trial_id, experiment_tag, status, is_finished = "a trial", "", "RUNNING", staticmethod(lambda: False)
        run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None)))
        config: ClassVar[dict[str, Any]] = {"number": 0, "point": {"sassl.prob": 0.5}}

    members = [_Member() for _ in range(4)]
    controller = SimpleNamespace(get_trials=lambda: members, _schedule_trial_save=lambda trial, result: None)
    scheduler = cast(Any, build_scheduler(simulated_study(scheduler="pbt"), evaluations=9))
    with _global_generators_as_they_were():
        before = scheduler._draws._states
        for number, member in enumerate(members):
            scheduler.on_trial_add(controller, member)
            scheduler.on_trial_result(controller, member, {EVALUATION: 9, "knn_top1": 1 - number / 10})
        assert scheduler._draws._states[0] != before[0]


@contextmanager
def _global_generators_as_they_were() -> Iterator[None]:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    yield
    assert (random.random(), np.random.random()) == expected


def test_nothing_is_stopped_first_come_first_served():
    assert _decide(build_scheduler(simulated_study(scheduler="fifo"), evaluations=9), 0.0) == TrialScheduler.CONTINUE


def test_population_based_training_needs_numbers_and_a_population():
    words = SearchSpace(parameters=(Choice(path="stylize", choices=("identity", "color_statistics")),))
    study = simulated_study(scheduler="pbt")
    build_scheduler(study, evaluations=9)
    with pytest.raises(UsageError, match="changes numbers"):
        build_scheduler(study.model_copy(update={"space": words}), evaluations=9)
    with pytest.raises(UsageError, match="needs a population"):
        build_scheduler(simulated_study(scheduler="pbt", num_trials=1), evaluations=9)


def test_population_based_training_keeps_numbers_in_their_range():
    scheduler = cast(Any, build_scheduler(simulated_study(scheduler="pbt"), evaluations=9))
    explored = scheduler._custom_explore_fn({"number": 0, "point": {"sassl.prob": 1.08}})
    assert explored == {"number": 0, "point": {"sassl.prob": 1.0}}
