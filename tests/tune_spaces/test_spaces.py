"""Every search space fits its experiment, and a space is a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.api.search import make_study
from ray_sassl.config.overrides import apply_overrides, parse_override
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError
from ray_sassl.study.searcher import suggest
from ray_sassl.study.space import SearchSpace, SpaceError, has_path
from tune_spaces import SpaceSource, load_space, spaces

each_space = pytest.mark.parametrize("source", spaces().values(), ids=lambda source: source.name)


def _space(source: SpaceSource, base: ExperimentConfig) -> SearchSpace:
    """With made-up curves of doses, which a search measures on its images."""
    return source.space(base).with_curves(base, lambda config: ((0.0, 0.0), (2.0, 60.0)))


def _base(source: SpaceSource) -> ExperimentConfig:
    base = load_experiment(source.experiment)
    return apply_overrides(base, source.space(base).overrides)


@each_space
def test_fifty_draws_of_every_space_are_valid_and_name_real_paths(source):
    base = _base(source)
    space = _space(source, base)
    space.check(base)
    for number in range(50):
        point = suggest(space, base, [], number, seed=3, searcher="random")
        assert point is not None
        config = space.config(base, point)
        for override in space.overrides_of(point):
            assert has_path(config, parse_override(override)[0]), override


@each_space
def test_every_dimension_of_a_space_is_reached_and_changes_the_config(source):
    base = _base(source)
    space = _space(source, base)
    points = [suggest(space, base, [], number, seed=0, searcher="random") for number in range(300)]
    for dimension in space.dimensions:
        values = {point[dimension.name] for point in points if point and dimension.name in point}
        assert len(values) > 1 or (dimension.choices and len(dimension.choices) == 1), dimension
    changed = {space.config(base, point).model_dump_json() for point in points[:20] if point}
    assert len(changed) >= 15  # `identity` has no strength


@each_space
def test_every_space_says_in_one_line_what_it_searches(source):
    assert source.about.endswith(".")


@pytest.mark.parametrize("experiment", ["byol_cifar10_cpu", "moco_cifar10_cpu", "simclr_cifar10_cpu", "demo_plain"])
@pytest.mark.parametrize("name", ["feature_augmentation", "optimization", "views"])
def test_spaces_follow_the_method_that_they_find(name, experiment):
    base = load_experiment(experiment)
    load_space(name).space(base).check(base)


@pytest.mark.parametrize("name", ["feature_augmentation", "joint"])
def test_what_the_method_refuses_is_not_drawn(name):
    study = make_study(name, overrides=["method=vicreg"])
    drawn = {config.method.fa.augmentation.name for config in study.space.check(study.base)}  # type: ignore[attr-defined]
    assert "nearest" not in drawn
    assert {"identity", "mask", "swap"} <= drawn


def test_an_augmentation_that_does_not_fit_a_fixed_architecture_is_refused_with_the_reason():
    base = apply_overrides(load_experiment("simclr_cifar10_cpu"), ["method.fa.architecture=post_predictor"])
    space = load_space("feature_augmentation").space(base).without(["method.fa.architecture=post_predictor"])
    with pytest.raises(SpaceError, match="nearest, which lets no gradient through, would leave the predictor untrained"):
        space.check(base)


def test_a_method_without_feature_augmentation_is_refused_by_name():
    base = apply_overrides(load_experiment("simclr_cifar10_cpu"), ["method=swav"])
    with pytest.raises(UsageError, match="method=swav has no feature augmentation"):
        load_space("feature_augmentation").space(base)


def test_banks_are_searched_where_the_experiment_has_one():
    bank = ["sassl={style_source: bank, bank: styles.safetensors}", "stylize=swift"]
    base = apply_overrides(load_experiment("moco_cifar10_cpu_sassl"), bank)
    space = load_space("style_strength").space(base)
    drawn = [suggest(space, base, [], number, seed=0, searcher="random") for number in range(30)]
    configs = [space.config(base, point) for point in drawn if point]
    assert {config.sassl.style_source for config in configs} == {"in_batch", "bank", "gaussian"}
    assert {config.stylize.name for config in configs} == {"swift"}


def test_users_bring_their_own_space_as_yaml_or_python(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "experiment: demo\nabout: Mine.\nsearcher: random\nparameters:\n"
        "- {kind: float, path: sassl.prob, low: 0.2, high: 0.4}\n- {kind: choice, path: stylize, choices: [identity, color_statistics]}\n"
    )
    (tmp_path / "other.py").write_text(
        "'''Other.'''\nfrom ray_sassl.study.space import Float, SearchSpace\nEXPERIMENT = 'demo'\n"
        "def space(base):\n    return SearchSpace(parameters=(Float(path='optim.base_lr', low=0.1, high=1, log=True),))\n"
    )
    mine, other = load_space(str(tmp_path / "mine.yaml")), load_space(str(tmp_path / "other.py"))
    base = load_experiment(mine.experiment)
    assert (mine.name, mine.about, mine.space(base).searcher) == ("mine", "Mine.", "random")
    assert [dimension.name for dimension in other.space(base).dimensions] == ["optim.base_lr"]


def test_what_is_no_space_is_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(UsageError, match=r"did you mean 'style_strength'.*or give a \.py or \.yaml"):
        load_space("style_strenght")
    (tmp_path / "bad.yaml").write_text("experiment: demo\nparameters: [{kind: float, path: sassl.prob, low: 1, high: 0}]\n")
    with pytest.raises(UsageError, match="low <= high"):
        load_space(str(tmp_path / "bad.yaml"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="needs EXPERIMENT"):
        load_space(str(tmp_path / "empty.py"))
    with pytest.raises(UsageError, match="there is no file"):
        load_space("nowhere.yaml")
