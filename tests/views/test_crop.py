from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ray_sassl.views import crop as crops_module
from ray_sassl.views.crop import Crops, crop
from ray_sassl.views.draw import ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import ViewConfig

needs_vectorized = pytest.mark.skipif(find_spec("cykooz_resizer") is None, reason="cykooz-resizer has no wheel for this machine")
RATES = {"bilinear": (1e-2, 1e-6), "bicubic": (1e-2, 1e-4)}
"""The most values that may differ from Pillow's by one gray level, and by two."""


@pytest.fixture(scope="module")
def photos(shared_dir) -> list[np.ndarray]:
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:8]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def drawn(images: list[np.ndarray]) -> ViewParams:
    params = draw(ViewConfig(), np.array([image.shape[1::-1] for image in images]), DrawKey(1, 0, np.arange(len(images))))
    assert len(set(params.flip)) == 2
    return params


def torchvisions(image: np.ndarray, params: ViewParams, row: int, size_px: int, interpolation: str) -> np.ndarray:
    box = int(params.top[row]), int(params.left[row]), int(params.height[row]), int(params.width[row])
    expected = tv.resized_crop(Image.fromarray(image), *box, [size_px, size_px], InterpolationMode(interpolation))
    return np.asarray(tv.hflip(expected) if params.flip[row] else expected)


def levels_apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [32, 96])
def test_pillows_crops_equal_torchvisions_on_real_images(photos, interpolation, size_px):
    params = drawn(photos)
    views = crop(photos, params, size_px, interpolation, "pillow")
    for row, image in enumerate(photos):
        np.testing.assert_array_equal(views[row], torchvisions(image, params, row, size_px, interpolation))


@needs_vectorized
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [32, 96, 224])
def test_fast_crops_are_pillows_but_for_the_rounding_of_few_values(photos, interpolation, size_px):
    params = drawn(photos)
    apart = levels_apart(crop(photos, params, size_px, interpolation), crop(photos, params, size_px, interpolation, "pillow"))
    one, two = RATES[interpolation]
    assert (apart > 0).mean() <= one
    assert (apart > 1).mean() <= two
    assert apart.max() <= 2


@needs_vectorized
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(190, 252), (252, 190), (300, 200), (227, 255), (100, 300), (64, 64), (1, 7), (400, 1)])
def test_sharp_edges_are_cut_off_as_in_pillow(interpolation, size):
    """Black and white noise overshoots in every pixel, so rows and columns must be filtered in Pillow's order."""
    noise = (np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3)) * 255).astype(np.uint8)
    params = drawn([noise] * 2)
    whole = {"top": [0, 0], "left": [0, 0], "width": [size[0]] * 2, "height": [size[1]] * 2}
    params = replace(params, **{name: np.array(value) for name, value in whole.items()})
    apart = levels_apart(crop([noise] * 2, params, 64, interpolation), crop([noise] * 2, params, 64, interpolation, "pillow"))
    assert apart.max() <= 2
    assert (apart > 1).mean() <= 1e-3


@needs_vectorized
def test_without_the_vectorized_resizer_pillow_crops(photos, monkeypatch):
    params = drawn(photos)
    expected = crop(photos, params, 48, "bicubic", "pillow")
    monkeypatch.setattr(crops_module, "_HAS_VECTORIZED", False)
    np.testing.assert_array_equal(crop(photos, params, 48, "bicubic", "fast"), expected)


def test_no_pixel_outside_the_box_has_a_share_in_the_crop():
    image = np.full((60, 80, 3), 255, np.uint8)
    image[20:40, 30:60] = 7
    params = drawn([image] * 2)
    params = replace(params, top=np.array([20, 20]), left=np.array([30, 30]), height=np.array([20, 20]), width=np.array([30, 30]))
    for resizing in ("fast", "pillow"):
        for interpolation in ("bilinear", "bicubic"):
            assert (crop([image] * 2, params, 48, interpolation, resizing) == 7).all()


def test_an_image_may_shrink_as_long_as_each_crop_keeps_twice_the_views_pixels():
    params = drawn([np.zeros((8, 8, 3), np.uint8)] * 2)
    smaller_sides = [63, 64, 127, 128, 255, 256, 4000, 64]
    many = params.take(np.zeros(8, int))
    many = replace(many, width=np.array([*smaller_sides[:7], 5000]), height=np.array([9000] * 7 + [64]))
    assert Crops(many, 16).shrink.tolist() == [1, 2, 2, 4, 4, 8, 8, 2]
    assert Crops(many, 16, resizing="pillow").shrink.tolist() == [1] * 8


@pytest.mark.parametrize("resizing", ["fast", "pillow"])
def test_the_crop_of_a_shrunken_image_shows_the_same_place(resizing):
    """A slope of gray: each pixel says where it was."""
    height, width = 301, 403
    image = np.repeat((np.arange(width) * 255 / width)[None, :, None], height, axis=0).repeat(3, axis=2)
    half = np.stack([image[::2, ::2], image[::2, 1::2][:, [*range(width // 2), -1]]]).mean(axis=0)
    params = drawn([image] * 2)
    params = replace(params, top=np.array([13, 1]), left=np.array([101, 0]), height=np.array([251, 300]), width=np.array([277, 403]))
    crops = Crops(params, 32, "bilinear", resizing)
    for row in range(2):
        crops.cut(row, half.astype(np.uint8), 2)
    expected = crop([image.astype(np.uint8)] * 2, params, 32, "bilinear", "pillow")
    assert levels_apart(crops.views, expected).max() <= 1
