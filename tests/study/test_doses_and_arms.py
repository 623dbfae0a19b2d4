"""Parameters that stand for several fields: a dose, and the arms of an ablation."""

from __future__ import annotations

import pytest

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.study.space import Arms, Choice, Dose, SearchSpace, SpaceError


@pytest.fixture(scope="module")
def base() -> ExperimentConfig:
    return load_experiment("demo")


def test_a_dose_is_the_alpha_and_beta_that_give_it_with_the_points_stylizer(base: ExperimentConfig):
    space = SearchSpace(parameters=(Choice(path="stylize", choices=("fda", "swift")), Dose(low=0, high=10)))
    measured: list[str] = []

    def measure(config):
        measured.append(config.stylize.name)
        return ((0.0, 0.0), (0.4, 10.0 if config.stylize.name == "swift" else 20.0), (2.0, 30.0))

    space = space.with_curves(base, measure)
    assert measured == ["fda", "swift"]
    assert space.with_curves(base, measure) == space  # what is known is not measured again
    assert len(measured) == 2
    configs = [space.config(base, {"stylize": name, "dose": 5.0}) for name in ("fda", "swift")]
    assert [config.sassl.alpha for config in configs] == [config.sassl.beta for config in configs] == [(0.05, 0.15), (0.1, 0.3)]
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space
    fixed = SearchSpace(parameters=(Dose(low=0, high=50),))
    with pytest.raises(SpaceError, match="no dose was measured for stylize=None"):
        fixed.config(base, {"dose": 5.0})
    with pytest.raises(SpaceError, match="full strength gives 30; lower the upper end of the range"):
        fixed.with_curves(base, measure).check(base)


def test_arms_are_sets_of_changes(base: ExperimentConfig):
    arms = Arms(arms={"plain": {"stylize": {"name": "identity"}}, "strong": {"sassl.alpha": [1, 1], "optim.base_lr": 0.5}})
    space = SearchSpace(parameters=(Choice(path="seed", choices=(0, 1)), arms))
    points = list(space.grid(base))
    assert [tuple(point.values()) for point in points] == [(0, "plain"), (0, "strong"), (1, "plain"), (1, "strong")]
    config = space.config(base, points[3])
    assert (config.seed, config.sassl.alpha, config.optim.base_lr, config.stylize.name) == (1, (1, 1), 0.5, "color_statistics")
    assert space.config(base, points[0]).stylize.name == "identity"
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space
