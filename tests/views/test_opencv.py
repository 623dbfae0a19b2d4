from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from ray_sassl.views import opencv, ops
from ray_sassl.views.draw import JITTER_OPS, ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import byol
from tests.views import float64_colors


@pytest.fixture(scope="module")
def photos(shared_dir) -> np.ndarray:
    """(6, 96, 128, 3) uint8."""
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:6]
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((128, 96))) for path in paths])


def params_for(images: np.ndarray, **fields) -> ViewParams:
    params = draw(byol(224).right, np.full((len(images), 2), 128), DrawKey(0, 0, np.arange(len(images))))
    still = {name: np.zeros(len(images), bool) for name in ("jitter", "grayscale", "solarize")}
    return replace(params, **{**still, "blur_sigma": np.zeros(len(images)), **fields})


def difference(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize(("name", "tolerance"), [("brightness", 0), ("contrast", 0), ("saturation", 1)])
def test_jitter_equals_torchvision_on_pillow_images(photos, name, tolerance, factor):
    views = photos.copy()
    getattr(opencv, f"adjust_{name}")(views, np.arange(len(views)), np.full(len(views), factor))
    expected = np.stack([np.asarray(getattr(tv, f"adjust_{name}")(Image.fromarray(photo), factor)) for photo in photos])
    assert difference(views, expected) <= tolerance


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_large_images_get_the_very_levels_of_the_table_that_small_ones_are_looked_up_in(name):
    """All 256 levels by many factors, in a large image, whose levels are computed, and in one row of it, which is looked up."""
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    factors = np.concatenate([np.arange(0, 2.01, 0.05), np.random.default_rng(0).uniform(0, 2, 300)])
    small = np.repeat(levels[None], len(factors), axis=0)
    large = small.repeat(64, axis=1)
    assert small[0, :, :, 0].size < opencv._LINEAR_PIXELS <= large[0, :, :, 0].size
    for views in (large, small):
        getattr(opencv, f"adjust_{name}")(views, np.arange(len(factors)), factors)
    np.testing.assert_array_equal(large, small.repeat(64, axis=1))


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.01, 0.0, 0.13, 0.5])
def test_hue_equals_torchvisions_float_form_to_one_level(photos, shift):
    views = photos.copy()
    opencv.adjust_hue(views, np.arange(len(views)), np.full(len(views), shift))
    expected = tv2.adjust_hue(ops_input(photos), shift)
    assert difference(views, to_levels(expected)) <= 1


@pytest.mark.parametrize("shift", [-0.2, 0.13])
def test_hue_is_near_pillows_whose_hsv_has_eight_bits(photos, shift):
    views = photos.copy()
    opencv.adjust_hue(views, np.arange(len(views)), np.full(len(views), shift))
    expected = np.stack([np.asarray(tv.adjust_hue(Image.fromarray(photo), shift)) for photo in photos])
    # Pillow cuts hue, saturation and value off to 8 bits: a level of hue alone is 6 gray levels at full saturation.
    assert difference(views, expected) <= 16
    assert np.abs(views.astype(int) - expected).mean() < 2.0


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_blur_equals_torchvisions_to_one_level(photos, sigma):
    views = opencv.color(photos, params_for(photos, blur_sigma=np.full(len(photos), sigma)))
    expected = tv2.gaussian_blur(torch.from_numpy(photos).permute(0, 3, 1, 2), [23, 23], [sigma, sigma])
    assert difference(views, expected.permute(0, 2, 3, 1).numpy()) <= 1


def test_grayscale_equals_pillows_to_one_level(photos):
    views = opencv.color(photos, params_for(photos, grayscale=np.ones(len(photos), bool)))
    assert difference(views, np.stack([np.asarray(Image.fromarray(photo).convert("L").convert("RGB")) for photo in photos])) <= 1


def test_solarize_equals_pillows(photos):
    views = opencv.color(photos, params_for(photos, solarize=np.ones(len(photos), bool)))
    assert difference(views, np.stack([np.asarray(ImageOps.solarize(Image.fromarray(photo), 128)) for photo in photos])) == 0


@pytest.mark.parametrize("colors", ["simclr", "byol"])
@pytest.mark.parametrize(("name", "values"), [("brightness", (0.2, 1.7)), ("contrast", (0.2, 1.7)), ("saturation", (0.0, 0.6, 1.8))])
def test_each_operation_of_simclr_and_byol_is_rounded_once(photos, colors, name, values):
    images = photos[:, 10:40, 10:50]
    for value in values:
        amount = value - 1 if (colors, name) == ("byol", "brightness") else value
        views = images.copy()
        opencv._JITTER[colors][name](views, np.arange(len(views)), np.full(len(views), amount))
        expected = np.stack([float64_colors.changed(image / 255, name, amount, colors) for image in images])
        assert np.abs(views - 255 * expected).max() <= 0.501


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_simclrs_and_byols_blur_is_black_beyond_the_border(photos, sigma):
    views = opencv.color(photos, params_for(photos, blur_sigma=np.full(len(photos), sigma), colors="byol"))
    expected = np.stack([float64_colors.blurred(photo / 255, sigma, 23) for photo in photos])
    assert np.abs(views - 255 * expected).max() <= 1.01
    mirrored = opencv.color(photos, params_for(photos, blur_sigma=np.full(len(photos), sigma)))
    np.testing.assert_array_equal(views[:, 12:-12, 12:-12], mirrored[:, 12:-12, 12:-12])


def test_the_jitter_follows_each_samples_order(photos):
    pair = np.stack([photos[0], photos[0]])
    params = params_for(pair, jitter=np.array([True, True]), order=np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.int8))
    fixed = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.3, "hue": 0.1}
    params = replace(params, **{name: np.full(2, value) for name, value in fixed.items()})
    views = opencv.color(pair, params)
    for row in range(2):
        expected = pair[:1].copy()
        for op in params.order[row]:
            name = JITTER_OPS[op]
            getattr(opencv, f"adjust_{name}")(expected, np.array([0]), np.array([fixed[name]]))
        np.testing.assert_array_equal(views[row], expected[0])
    assert difference(views[0], views[1]) > 5


@pytest.mark.parametrize("colors", ["torchvision", "simclr", "byol"])
@pytest.mark.parametrize("size", [32, 96])
def test_both_backends_agree_but_for_their_rounding(photos, size, colors):
    images = np.stack([np.asarray(Image.fromarray(photo).resize((size, size))) for photo in photos] * 8)
    view = byol(224).right.model_copy(update={"colors": colors})
    params = draw(view, np.full((len(images), 2), size), DrawKey(3, 0, np.arange(len(images)), 1))
    ours = opencv.color(images, params)
    floats = to_levels(ops.color(ops_input(images), params))
    # Up to seven roundings to 8 bits against none, some amplified by what follows; solarization flips what straddles its threshold.
    error = np.abs(ours.astype(int) - floats.astype(int))
    steady = error[~params.solarize]
    assert steady.mean() < 1.5
    assert np.quantile(steady, 0.999) <= 12


def test_images_are_left_as_they_are_and_chunks_do_not_matter(photos, monkeypatch):
    before = photos.copy()
    params = draw(byol(224).right, np.full((len(photos), 2), 128), DrawKey(3, 0, np.arange(len(photos)), 1))
    whole = opencv.color(photos, params)
    np.testing.assert_array_equal(photos, before)
    monkeypatch.setattr(opencv, "_CHUNK_PIXELS", 1)
    np.testing.assert_array_equal(opencv.color(photos, params), whole)


def test_colors_may_be_changed_in_place_or_into_another_array(photos):
    params = draw(byol(224).right, np.full((len(photos), 2), 128), DrawKey(3, 0, np.arange(len(photos)), 1))
    expected, other, same = opencv.color(photos, params), np.empty_like(photos), photos.copy()
    assert opencv.color(photos, params, out=other) is other
    assert opencv.color(same, params, out=same) is same
    np.testing.assert_array_equal(other, expected)
    np.testing.assert_array_equal(same, expected)


def ops_input(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def to_levels(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
