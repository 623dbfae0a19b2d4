from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from ray_sassl.views import ops
from ray_sassl.views.draw import draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import byol
from tests.views import float64_colors

LEVEL = 1 / 255


@pytest.fixture(scope="module")
def photos(shared_dir) -> torch.Tensor:
    """(6, 3, 64, 80) float32."""
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:6]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((80, 64))) for path in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_equals_torchvision_with_a_factor_per_sample(photos, name):
    factors = torch.tensor([0.2, 0.6, 0.9, 1.0, 1.4, 1.8]) if name != "hue" else torch.tensor([-0.5, -0.2, -0.01, 0.0, 0.1, 0.5])
    ours = getattr(ops, f"adjust_{name}")(photos, factors)
    expected = torch.stack([getattr(tv, f"adjust_{name}")(x, float(f)) for x, f in zip(photos, factors, strict=True)])
    torch.testing.assert_close(ours, expected, atol=0.1 * LEVEL, rtol=0)


def test_blur_equals_torchvision_with_a_sigma_per_sample(photos):
    sigmas = torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6, 2.0])
    expected = torch.stack([tv.gaussian_blur(x, [23, 23], [float(s)] * 2) for x, s in zip(photos, sigmas, strict=True)])
    torch.testing.assert_close(ops.blur(photos, sigmas, 23), expected, atol=0.1 * LEVEL, rtol=0)


def test_grayscale_and_solarize_equal_torchvision(photos):
    torch.testing.assert_close(ops.grayscale(photos), tv.rgb_to_grayscale(photos, 3), atol=0.2 * LEVEL, rtol=0)
    torch.testing.assert_close(ops.solarize(photos, 0.5), tv.solarize(photos, 0.5))


def test_flip_mirrors_only_the_chosen(photos):
    flipped = ops.flip(photos, torch.tensor([True, False, False, False, False, True]))
    torch.testing.assert_close(flipped[0], photos[0].flip(-1))
    torch.testing.assert_close(flipped[1], photos[1])


def test_neutral_factors_change_nothing(photos):
    ones, zeros = torch.ones(6), torch.zeros(6)
    for changed in (ops.adjust_brightness(photos, ones), ops.adjust_contrast(photos, ones), ops.adjust_saturation(photos, ones)):
        torch.testing.assert_close(changed, photos, atol=1e-6, rtol=0)
    torch.testing.assert_close(ops.adjust_hue(photos, zeros), photos, atol=1e-5, rtol=0)


def test_color_of_a_batch_equals_color_of_each_image(photos):
    params = draw(byol(224).right, np.full((6, 2), 64), DrawKey(4, 0, np.arange(6), 1))
    before = photos.clone()
    together = ops.color(photos, params)
    alone = torch.cat([ops.color(photos[row : row + 1], params.take(slice(row, row + 1))) for row in range(6)])
    torch.testing.assert_close(together, alone, atol=0.01 * LEVEL, rtol=0)
    torch.testing.assert_close(photos, before)


@pytest.mark.parametrize("colors", ["simclr", "byol"])
def test_the_colors_of_simclr_and_byol_equal_a_slow_float64_reference(photos, colors):
    images = photos[:, :, 20:44, 20:50].double().repeat(8, 1, 1, 1)
    view = byol(224).right.model_copy(update={"colors": colors, "blur_prob": 0.5, "saturation": 0.8})
    params = draw(view, np.full((len(images), 2), 64), DrawKey(4, 0, np.arange(len(images)), 1))
    found = ops.color(images, params)
    for row, image in enumerate(images):
        expected = float64_colors.color(image.permute(1, 2, 0).numpy(), params.take(slice(row, row + 1)))
        np.testing.assert_allclose(found[row].permute(1, 2, 0).numpy(), expected, atol=1e-12)
    assert all(chosen.any() for chosen in (params.jitter, params.grayscale, params.solarize))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_colors_of_the_cpu(photos):
    params = draw(byol(224).right, np.full((6, 2), 64), DrawKey(4, 0, np.arange(6), 1))
    params = params.take(np.flatnonzero(~params.solarize))
    chosen = photos[: len(params)]
    torch.testing.assert_close(ops.color(chosen.cuda(), params).cpu(), ops.color(chosen, params), atol=0.5 * LEVEL, rtol=0)
