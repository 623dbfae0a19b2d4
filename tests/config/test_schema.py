import pytest
from pydantic import ValidationError

from ray_sassl.config.overrides import OverrideError, apply_overrides
from ray_sassl.experiments import load_experiment
from ray_sassl.methods import MethodConfig
from ray_sassl.plugins import load_plugin, plugin_names

METHODS = {name: load_plugin("ray_sassl.methods", name).Config for name in plugin_names("ray_sassl.methods")}
TAKERS = [name for name, config in METHODS.items() if config.takes_small_views]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_accepts_a_pair_and_methods_for_pairs_refuse_small_views(name):
    config = apply_overrides(load_experiment("demo_plain"), [f"method={name}"])
    if name in TAKERS:
        assert apply_overrides(config, ["views=dino_32"]).views.num_small == 8
        return
    with pytest.raises(OverrideError, match=f"method={name} is defined for two views, and views.num_small=8 adds local crops") as error:
        apply_overrides(config, ["views=dino_32"])
    assert f"a method that takes them: {', '.join(TAKERS)}" in str(error.value)


def test_there_are_methods_of_both_kinds():
    assert TAKERS
    assert len(TAKERS) < len(METHODS)
    assert not MethodConfig.takes_small_views


@pytest.mark.parametrize("order", [1, -1])
def test_a_recipe_with_local_crops_and_a_method_for_them_are_set_in_any_order(order):
    config = apply_overrides(load_experiment("demo_plain"), ["views=swav_32", f"method={TAKERS[0]}"][::order])
    assert config.views.num_small == 6


def test_stylizing_local_crops_that_are_not_there_is_refused():
    config = load_experiment("demo")
    with pytest.raises(OverrideError, match=r"views\.num_small=0 makes none"):
        apply_overrides(config, ["sassl.views=small"])
    with pytest.raises(ValidationError, match=r"views\.num_small=0 makes none"):
        type(config).model_validate(config.model_dump() | {"sassl": {"views": "small"}})
    assert apply_overrides(config, ["sassl.views=all"]).sassl.views == "all"


@pytest.mark.parametrize("name", plugin_names("ray_sassl.style.stylizers"))
def test_views_too_small_for_the_stylizer_are_refused_before_it_is_built(name):
    changes = [f"stylize={name}", "views=dino_32", "method=dino", "sassl.views=all"]  # local crops of 16 px
    min_px = load_plugin("ray_sassl.style.stylizers", name).Config.min_px
    if min_px <= 16:
        assert apply_overrides(load_experiment("demo_plain"), changes).stylize.name == name
        return
    with pytest.raises(OverrideError, match=rf"at least {min_px} px, not of 16 px; .*a stylizer for them: .*color_statistics.*identity"):
        apply_overrides(load_experiment("demo_plain"), changes)
    assert apply_overrides(load_experiment("demo_plain"), [*changes[:-1], "sassl.views=both"]).views.small_px == 16


def _reason(*changes: str) -> str | None:
    try:
        apply_overrides(load_experiment("demo_plain"), ["scaling.num_workers=1", *changes])
    except OverrideError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("name", plugin_names("ray_sassl.methods"))
def test_a_batch_of_one_image_is_refused_by_every_method_that_learns_nothing_from_it(name):
    for changes in (["train.global_batch=1"], ["train.global_batch=16", "train.accumulate=16"]):
        reason = _reason(f"method={name}", *changes)
        if name == "dino":  # its center remembers earlier batches
            assert reason is None
            assert _reason("method=dino", "method.projector_bn=true", *changes)
        else:
            assert reason is not None
            assert f"method={name} would learn nothing" in reason
            assert "in parts of 1 (each of 1 workers" in reason
    assert _reason(f"method={name}", "train.global_batch=2") is None


@pytest.mark.parametrize("name", plugin_names("ray_sassl.methods"))
def test_one_image_per_worker_is_enough_unless_each_worker_normalizes_by_itself(name):
    alone = [f"method={name}", "scaling.num_workers=4", "train.global_batch=4"]
    assert _reason(*alone) is None
    if "bn" in METHODS[name].model_fields and name not in ("moco", "dino"):  # these have none in their heads by default
        assert "normalizes the outputs of its heads" in str(_reason(*alone, "method.bn=plain"))
        assert _reason(*alone, "method.bn=plain", "train.global_batch=8") is None


def test_parts_that_an_elastic_run_may_come_to_are_looked_at_too():
    changes = ["method=simclr", "scaling.num_workers=4", "train.global_batch=8", "train.accumulate=2"]
    assert _reason(*changes) is None  # four images in each part
    assert "in parts of 1 (each of 1 workers takes its share in 8)" in str(_reason(*changes, "scaling.min_workers=1"))


def test_groups_of_split_batch_normalization_need_an_image_each():
    assert "method.num_splits=8 groups" in str(_reason("method=moco", "method.bn=split", "train.global_batch=4"))
    assert _reason("method=moco", "method.bn=split", "train.global_batch=8") is None
