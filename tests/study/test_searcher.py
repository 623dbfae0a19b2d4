"""What is tried next follows from the seed, the number and the trials so far, and finds what is good."""

from __future__ import annotations

import pytest

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.study.searcher import Known, _at_largest_budget, suggest
from ray_sassl.study.space import Choice, Float, Objective, Point, SearchSpace

SPACE = SearchSpace(
    parameters=(
        Float(path="sassl.prob", low=0, high=1),
        Choice(path="stylize", choices=("identity", "color_statistics")),
        Float(path="sassl.alpha.low", name="strength", low=0, high=1, when={"stylize": ("color_statistics",)}),
    )
)


@pytest.fixture(scope="module")
def base() -> ExperimentConfig:
    return load_experiment("demo")


def _score(point: Point) -> float:
    """Best at prob 0.7, with style, at strength 0.2."""
    bonus = 1 - abs(float(point["strength"]) - 0.2) if "strength" in point else 0.0  # type: ignore[arg-type]
    return 1 - abs(float(point["sassl.prob"]) - 0.7) + bonus  # type: ignore[arg-type]


def _study(base: ExperimentConfig, searcher: str, trials: int, seed: int = 0) -> list[Point]:
    known: list[Known] = []
    for number in range(trials):
        point = suggest(SPACE, base, known, number, seed=seed, searcher=searcher)
        assert point is not None
        known.append(Known(point, "finished", (_score(point),), {1: _score(point)}))
    return [trial.point for trial in known]


@pytest.mark.parametrize("searcher", ["random", "optuna", "hyperband-bayes"])
def test_the_same_seed_suggests_the_same_sequence_and_another_seed_another(base, searcher):
    assert _study(base, searcher, 12) == _study(base, searcher, 12)
    assert _study(base, searcher, 12) != _study(base, searcher, 12, seed=1)


@pytest.mark.parametrize("searcher", ["optuna", "hyperband-bayes"])
def test_what_has_been_learned_makes_later_points_better_than_random_ones(base, searcher):
    def late(name: str) -> float:
        scores = [_score(point) for seed in range(3) for point in _study(base, name, 30, seed)[15:]]
        return sum(scores) / len(scores)

    assert late(searcher) > late("random") + 0.2


def test_a_grid_ends(base):
    points = [suggest(SPACE, base, [], number, seed=0, searcher="grid") for number in range(13)]
    assert len({tuple(sorted(point.items(), key=str)) for point in points[:12] if point}) == 12
    assert points[12] is None


def test_a_point_that_was_tried_is_not_tried_again_while_there_are_others(base):
    few = SearchSpace(parameters=(Choice(path="stylize", choices=("identity", "color_statistics")),))
    for seed in range(10):
        first = suggest(few, base, [], 0, seed=seed, searcher="random")
        assert first is not None
        assert suggest(few, base, [Known(first, "running")], 1, seed=seed, searcher="random") != first


def test_running_and_stopped_trials_and_several_objectives_are_taken_in(base):
    points = _study(base, "random", 12)
    known = [Known(p, "stopped" if n % 2 else "finished", (_score(p),), {1: _score(p)}) for n, p in enumerate(points[:10])]
    known += [Known(points[10], "running"), Known(points[11], "running", (0.5,), {1: 0.5})]
    assert suggest(SPACE, base, known, 12, seed=0, searcher="optuna")
    both = [Known(trial.point, trial.state, (*trial.values, 1.0) if trial.values else (), trial.curve) for trial in known]
    objectives = (Objective("knn_top1", "max"), Objective("images_per_s", "max"))
    assert suggest(SPACE, base, both, 12, seed=0, searcher="optuna", objectives=objectives)


def test_bohb_learns_from_the_largest_budget_that_enough_trials_have_reached(base):
    points = _study(base, "random", 12)
    # At budget 1 all look best at prob 0; at budget 3, which six have reached, the truth shows.
    known = [
        Known(p, "stopped", (1 - float(p["sassl.prob"]),), {1: 1 - float(p["sassl.prob"])} | ({3: _score(p)} if n < 6 else {}))  # type: ignore[arg-type]
        for n, p in enumerate(points)
    ]
    used = _at_largest_budget(known, 3)
    assert [trial.values[0] for trial in used] == [_score(p) for p in points[:6]]
