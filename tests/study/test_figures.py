"""Figures compare trials fairly, and are left out where there is nothing to draw."""

from __future__ import annotations

import pytest

from ray_sassl.experiments import load_experiment
from ray_sassl.study import figures
from ray_sassl.study.record import StudyConfig, TrialRecord
from ray_sassl.study.searcher import suggest
from tests.study.test_record import KNN, make_study, make_trial
from tune_spaces import load_space


def _whole_study(num_trials: int = 9) -> tuple[StudyConfig, list[TrialRecord]]:
    """A study of styles in which p decides alone, whose later trials were stopped after one or two evaluations."""
    base = load_experiment("moco_cifar10_cpu_sassl")
    space = load_space("style_strength").space(base)
    study = make_study().model_copy(update={"base": base, "space": space})
    trials = []
    for number in range(num_trials):
        point = suggest(space, base, [], number, seed=0, searcher="random")
        assert point is not None
        value = 0.3 + 0.2 * float(point["sassl.prob"])  # type: ignore[arg-type]
        length = 3 if number < 5 else 1 + number % 2
        trial = make_trial(number, [value * n / 3 for n in range(1, length + 1)], "finished" if length == 3 else "stopped", 100.0 + number)
        trial.point = point
        trials.append(trial)
    return study, trials


def test_trials_are_compared_at_the_latest_evaluation_that_half_of_them_reached():
    trials = [
        make_trial(0, [0.1, 0.2, 0.3]),
        make_trial(1, [0.4, 0.5, 0.6]),
        make_trial(2, [0.7, 0.8], "stopped"),
        make_trial(3, [0.9], "stopped"),
    ]
    assert figures.fair_evaluation(trials, "knn_top1") == (2, {0: 0.2, 1: 0.5, 2: 0.8})
    assert figures.fair_evaluation(trials[:2], "knn_top1") == (3, {0: 0.3, 1: 0.6})
    assert figures.fair_evaluation([TrialRecord(0, {})], "knn_top1") == (0, {})


def test_a_value_that_is_no_number_is_not_compared():
    trials = [make_trial(0, [0.1, float("nan")]), make_trial(1, [0.2, 0.3])]
    assert figures.fair_evaluation(trials, "knn_top1") == (1, {0: 0.1, 1: 0.2})
    assert figures.learning_curves(trials, KNN).startswith("<svg")


def test_the_parameter_that_decides_is_the_most_important_one():
    study, trials = _whole_study(12)
    values = {trial.number: 0.3 + 0.2 * float(trial.point["sassl.prob"]) for trial in trials}  # type: ignore[arg-type]
    found = figures.importance(study, trials, values)
    assert found is not None
    assert max(found[1], key=lambda name: found[1][name]) == "sassl.prob"
    assert sum(found[1].values()) == pytest.approx(1)
    assert figures.importance(study, trials[:7], values) is None


def test_every_figure_is_drawn_for_a_whole_study():
    study, trials = _whole_study()
    _, values = figures.fair_evaluation(trials, "knn_top1")
    for svg in (
        figures.learning_curves(trials, KNN),
        figures.strength_map(study, trials, values, "knn_top1"),
        figures.slices(study, trials, values, "knn_top1"),
        figures.parallel_coordinates(study, trials, values, "knn_top1"),
        figures.pareto(study, trials),
    ):
        assert svg is not None
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")


def test_what_is_not_searched_is_not_drawn():
    study, trials = make_study(), [make_trial(number, [0.1 * number]) for number in range(4)]
    values = {trial.number: 0.1 * trial.number for trial in trials}
    assert figures.strength_map(study, trials, values, "knn_top1") is None  # beta has no interval here
    assert figures.pareto(study, trials[:1]) is None
    assert figures.slices(study, [], {}, "knn_top1") is None
