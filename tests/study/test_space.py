"""Parameters become overrides, and wrong spaces are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError
from ray_sassl.study.space import Choice, Float, Int, Interval, Objective, SearchSpace, SpaceError


@pytest.fixture(scope="module")
def base() -> ExperimentConfig:
    return load_experiment("demo")


def test_an_interval_is_its_lower_end_and_its_width_and_never_exceeds_its_most():
    interval = Interval(path="sassl.alpha", low=(0.0, 1.0), width=(0.0, 1.0))
    assert dict(interval.values({"sassl.alpha.low": 0.25, "sassl.alpha.width": 0.5})) == {"sassl.alpha": [0.25, 0.75]}
    assert dict(interval.values({"sassl.alpha.low": 0.9, "sassl.alpha.width": 0.5})) == {"sassl.alpha": [0.9, 1.0]}


def test_factors_scale_one_number_for_several_paths(base):
    space = SearchSpace(parameters=(Float(path=("views.left.hue", "views.right.hue"), factors=(0.1, 0.2), name="jitter", low=0, high=2),))
    config = space.config(base, {"jitter": 1.5})
    assert (config.views.left.hue, config.views.right.hue) == pytest.approx((0.15, 0.3))


def test_a_conditional_parameter_is_there_only_where_its_condition_holds(base):
    kind = Choice(path="stylize", choices=("identity", "color_statistics"))
    prob = Float(path="sassl.prob", low=0, high=1, when={"stylize": ("color_statistics",)})
    space = SearchSpace(parameters=(kind, prob))
    assert space.draw(base, lambda d: d.at(0.0)) == {"stylize": "identity"}
    assert space.draw(base, lambda d: d.at(0.75)) == {"stylize": "color_statistics", "sassl.prob": 0.75}
    # What the user fixes is seen by conditions through the base experiment.
    fixed = space.without(["stylize=color_statistics"])
    assert fixed.draw(base, lambda d: d.at(0.5)) == {"sassl.prob": 0.5}
    with pytest.raises(SpaceError, match="fix everything"):
        space.without(["stylize=identity", "sassl.prob=1"])


def test_what_a_chosen_plugin_has_of_its_own_is_still_searched():
    kind = Choice(path="method.fa.augmentation", choices=("mask", "noise"))
    mask = Float(path="method.fa.augmentation.mask_prob", low=0.1, high=0.9, when={"method.fa.augmentation": ("mask",)})
    space = SearchSpace(parameters=(kind, mask, Float(path="sassl.prob", low=0, high=1), Float(path="optim.base_lr", low=0.1, high=1)))

    def left(*overrides: str) -> list[str]:
        return [dimension.name for dimension in space.without(overrides).dimensions]

    assert left("method=vicreg") == [dimension.name for dimension in space.dimensions]
    assert left("method.fa.augmentation=mask") == ["method.fa.augmentation.mask_prob", "sassl.prob", "optim.base_lr"]
    assert left("method.fa.augmentation={name: mask, mask_prob: 0.5}", "sassl={prob: 1}") == ["optim.base_lr"]
    assert left("sassl={alpha: [0, 1]}", "optim.base_lr=1")[-1] == "sassl.prob"
    masked = apply_overrides(load_experiment("simclr_cifar10_cpu"), ["method.fa.augmentation=mask"])
    assert set(space.without(["method.fa.augmentation=mask"]).draw(masked, lambda d: d.at(0.5))) == set(left("method.fa.augmentation=mask"))


def test_a_grid_has_every_combination_once_and_keeps_conditions(base):
    kind = Choice(path="stylize", choices=("identity", "color_statistics"))
    prob = Float(path="sassl.prob", low=0, high=1, when={"stylize": ("color_statistics",)})
    points = list(SearchSpace(parameters=(kind, prob)).grid(base))
    assert points == [{"stylize": "identity"}, *({"stylize": "color_statistics", "sassl.prob": p} for p in (0.0, 0.5, 1.0))]


def test_draws_stay_within_their_range_when_they_are_rounded():
    (dimension,) = Float(path="x", low=0.123456, high=0.123999).dimensions()
    assert all(0.123456 <= dimension.at(share) <= 0.123999 for share in (0.0, 0.5, 0.999))
    (whole,) = Int(path="x", low=1, high=4).dimensions()
    assert [whole.at(share) for share in (0.0, 0.24, 0.26, 0.51, 0.76, 0.999)] == [1, 1, 2, 3, 4, 4]
    (log,) = Float(path="x", low=1e-4, high=1, log=True).dimensions()
    assert [log.at(share) for share in (0.0, 0.25, 0.5, 0.75)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_a_space_with_a_wrong_path_is_refused_before_the_first_trial(base):
    with pytest.raises(SpaceError, match=r"the nearest is sassl\.prob"):
        SearchSpace(parameters=(Float(path="sassl.probb", low=0, high=1),)).check(base)
    with pytest.raises(SpaceError, match="less than or equal to 1"):
        SearchSpace(parameters=(Float(path="sassl.prob", low=0, high=2),)).check(base)


def test_names_stand_once_and_ranges_are_in_order():
    twice = Float(path="sassl.prob", low=0, high=1)
    with pytest.raises(ValidationError, match="are twice"):
        SearchSpace(parameters=(twice, twice))
    for wrong in ({"low": 1, "high": 0}, {"low": 0, "high": 1, "log": True}):
        with pytest.raises(ValidationError, match="a range needs"):
            Float(path="sassl.prob", **wrong)


@pytest.mark.parametrize("path", ["", []])
def test_a_parameter_without_a_path_is_refused(path: object):
    with pytest.raises(ValidationError, match="at least 1"):
        SearchSpace.model_validate({"parameters": [{"kind": "float", "path": path, "low": 0, "high": 1}]})


def test_an_objective_is_a_metric_and_its_better_direction():
    assert Objective.parse("loss") == Objective.parse("loss:min") == Objective("loss", "min")
    assert Objective.parse("effective_rank:min") == Objective("effective_rank", "min")
    assert str(Objective.parse("knn_top1:max")) == "knn_top1"
    for text in ("loss:max", "loss", "effective_rank:min", "images_per_s"):
        assert str(Objective.parse(text)) == text
    with pytest.raises(UsageError, match="is not an objective"):
        Objective.parse("loss:less")
