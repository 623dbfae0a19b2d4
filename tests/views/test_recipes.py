from __future__ import annotations

import pytest
from pydantic import ValidationError

from ray_sassl.plugins import FrozenConfig
from ray_sassl.views.recipes import RECIPES, ViewConfig, ViewsConfig, byol, moco_v2, simclr


class Experiment(FrozenConfig):
    views: ViewsConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_accepted_by_its_name_and_survives_json(name):
    config = Experiment(views=name)
    assert config.views == RECIPES[name]
    assert Experiment.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(ValidationError, match="did you mean 'simclr_32'"):
        Experiment(views="simclr32")


@pytest.mark.parametrize("recipe", [simclr, moco_v2, byol])
def test_small_forms_do_not_blur(recipe):
    assert all(view.blur_prob == 0 for view in recipe(32).views)
    assert all(view.blur_prob > 0 for view in recipe(224).views)


def test_byol_is_asymmetric_and_blurs_with_23_taps_at_224():
    config = byol(224)
    assert (config.left.blur_prob, config.right.blur_prob) == (1.0, 0.1)
    assert (config.left.solarize_prob, config.right.solarize_prob) == (0.0, 0.2)
    assert config.left.blur_kernel_px == 23


@pytest.mark.parametrize(
    "field",
    [{"crop_scale": (1.0, 0.1)}, {"crop_scale": (0.5, 1.5)}, {"hue": 0.6}, {"flip_prob": 1.1}, {"blur_kernel_px": 4}, {"blurr_prob": 0}],
)
def test_numbers_without_meaning_are_refused(field):
    with pytest.raises(ValidationError, match=next(iter(field))):
        ViewConfig(**field)


def test_auto_chooses_opencv_on_cpu_and_torch_elsewhere():
    assert simclr(32).backend_on("cpu") == "opencv"
    assert simclr(32).backend_on("cuda") == "torch"
    assert simclr(32).model_copy(update={"backend": "torch"}).backend_on("cpu") == "torch"
