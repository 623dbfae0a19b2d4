from __future__ import annotations

import pytest
from pydantic import ValidationError

from ray_sassl.plugins import FrozenConfig
from ray_sassl.views.recipes import (
    RECIPES,
    ViewConfig,
    ViewsConfig,
    asymmetric_strong,
    asymmetric_weak,
    byol,
    dino,
    lejepa,
    moco_v2,
    simclr,
    swav,
    symmetric,
    with_strong_left,
    with_weak_right,
)


class Experiment(FrozenConfig):
    views: ViewsConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_accepted_by_its_name_and_survives_json(name):
    config = Experiment(views=name)
    assert config.views == RECIPES[name]
    assert Experiment.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(ValidationError, match="did you mean 'simclr_32'"):
        Experiment.model_validate({"views": "simclr32"})


@pytest.mark.parametrize("recipe", [simclr, moco_v2, byol, swav, dino, lejepa, symmetric, asymmetric_strong])
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


# Multi-crop


def test_a_pair_is_two_views_of_one_size():
    config = simclr(32)
    assert (config.names, config.sizes_px) == (("left", "right"), (32, 32))
    assert config.views == (config.left, config.right)


def test_local_crops_follow_the_pair():
    config = simclr(32).model_copy(update={"num_small": 3, "small_px": 16})
    assert config.names == ("left", "right", "small 1", "small 2", "small 3")
    assert config.sizes_px == (32, 32, 16, 16, 16)
    assert config.views == (config.left, config.right, config.small, config.small, config.small)


def test_swav_has_the_crops_of_its_published_code():
    config = swav(224)
    assert config.sizes_px == (224,) * 2 + (96,) * 6
    assert (config.left.crop_scale, config.small.crop_scale) == ((0.14, 1.0), (0.05, 0.14))
    assert config.left == config.right
    assert {(v.brightness, v.hue, v.grayscale_prob, v.blur_prob, v.blur_kernel_px, v.interpolation) for v in config.views} == {
        (0.8, 0.2, 0.2, 0.5, 23, "bilinear")
    }


def test_dino_has_the_crops_of_its_published_code():
    config = dino(224)
    assert config.sizes_px == (224,) * 2 + (96,) * 8
    assert [view.crop_scale for view in config.views] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 8
    assert [(view.blur_prob, view.solarize_prob) for view in config.views[:3]] == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]
    assert {(v.brightness, v.contrast, v.saturation, v.hue) for v in config.views} == {(0.4, 0.4, 0.2, 0.1)}


def test_lejepa_has_the_crops_and_colors_of_its_official_code():
    config = lejepa(224)
    assert config.sizes_px == (224,) * 2 + (98,) * 6
    assert [view.crop_scale for view in config.views] == [(0.3, 1.0)] * 2 + [(0.05, 0.3)] * 6
    assert {(v.brightness, v.contrast, v.saturation, v.hue, v.blur_prob, v.solarize_prob) for v in config.views} == {
        (0.4, 0.4, 0.2, 0.1, 0.5, 0.2)
    }


@pytest.mark.parametrize("recipe", [swav, dino, lejepa])
def test_small_images_have_local_crops_of_16_px(recipe):
    assert set(recipe(32).sizes_px) == {32, 16}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"small_px": 48}, "small_px have no effect with num_small=0"),
        ({"small": ViewConfig(), "small_px": 48}, "small_px and small have no effect with num_small=0"),
        ({"num_small": 2}, "small_px=96 makes the local crops larger than the other views \\(size_px=32\\)"),
        ({"num_small": 255, "small_px": 16}, "num_small"),
        ({"num_small": -1}, "num_small"),
    ],
)
def test_local_crops_without_meaning_are_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        ViewsConfig(**{"size_px": 32, "left": ViewConfig(), "right": ViewConfig(), **fields})


# Asymmetric views


@pytest.mark.parametrize("size_px", [32, 224])
def test_the_three_strengths_share_one_side(size_px):
    base = symmetric(size_px)
    assert base.left == base.right
    assert asymmetric_weak(size_px).left == base.left
    assert asymmetric_strong(size_px).right == base.right
    assert asymmetric_weak(size_px).right != base.right
    assert asymmetric_strong(size_px).left != base.left


def test_the_weak_side_is_cropped_and_mirrored_only():
    for base in (simclr(224), byol(32), dino(224)):
        weak = with_weak_right(base)
        assert (weak.right.jitter_prob, weak.right.grayscale_prob, weak.right.blur_prob, weak.right.solarize_prob) == (0, 0, 0, 0)
        assert weak.right.crop_scale == (max(0.2, base.right.crop_scale[0]), 1.0)
        assert weak.right.flip_prob == 0.5
        assert weak.model_copy(update={"right": base.right}) == base
        assert ViewsConfig.model_validate(weak.model_dump()) == weak


def test_the_strong_side_has_at_least_the_strength_of_each_operation_that_it_had():
    for base in (simclr(224), byol(32), dino(224)):
        strong = with_strong_left(base).left
        assert (strong.brightness, strong.contrast, strong.saturation, strong.hue, strong.solarize_prob) == (0.8, 0.8, 0.8, 0.2, 0.2)
        assert strong.crop_scale == base.left.crop_scale
    stronger = simclr(224).left.model_copy(update={"hue": 0.4, "solarize_prob": 0.5})
    kept = with_strong_left(simclr(224).model_copy(update={"left": stronger})).left
    assert (kept.hue, kept.solarize_prob) == (0.4, 0.5)
