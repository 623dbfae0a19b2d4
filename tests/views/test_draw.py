from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from ray_sassl.views.draw import ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import ViewConfig, byol, simclr


def assert_same(first: ViewParams, second: ViewParams) -> None:
    for field in fields(ViewParams):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def draw_many(config: ViewConfig, size: tuple[int, int], number: int = 4000) -> ViewParams:
    return draw(config, np.tile(size, (number, 1)), DrawKey(0, 0, np.arange(number)))


def test_a_sample_has_the_same_parameters_in_any_batch_and_order():
    ids, sizes = np.array([5, 900, 17]), np.array([[32, 32], [50, 20], [341, 256]])
    together = draw(byol(224).right, sizes, DrawKey(11, 3, ids, 1))
    for row in range(3):
        one = slice(row, row + 1)
        assert_same(draw(byol(224).right, sizes[one], DrawKey(11, 3, ids[one], 1)), together.take(one))
    backwards = np.array([2, 1, 0])
    assert_same(draw(byol(224).right, sizes[::-1], DrawKey(11, 3, ids[::-1], 1)), together.take(backwards))


def test_views_and_epochs_have_draws_of_their_own():
    sizes, ids = np.full((20, 2), 100), np.arange(20)
    first = draw(simclr(32).left, sizes, DrawKey(0, 0, ids))
    assert not np.any(first.brightness == draw(simclr(32).left, sizes, DrawKey(0, 0, ids, 1)).brightness)
    assert not np.any(first.brightness == draw(simclr(32).left, sizes, DrawKey(0, 1, ids)).brightness)


@pytest.mark.parametrize("size", [(32, 32), (500, 20), (20, 500), (1, 1), (3, 2)])
def test_crops_lie_inside_the_image(size):
    params = draw_many(ViewConfig(), size)
    assert min(params.top.min(), params.left.min()) >= 0
    assert min(params.height.min(), params.width.min()) >= 1
    assert (params.left + params.width).max() <= size[0]
    assert (params.top + params.height).max() <= size[1]


def test_crops_are_distributed_as_torchvisions():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 60, 90)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    params = draw_many(ViewConfig(), (90, 60))
    ours = np.stack([params.top, params.left, params.height, params.width], axis=1)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.9)
    np.testing.assert_allclose(np.quantile(ours, [0.1, 0.5, 0.9], axis=0), np.quantile(theirs, [0.1, 0.5, 0.9], axis=0), atol=2)


def test_a_long_image_gets_the_central_crop_of_torchvision():
    params = draw_many(ViewConfig(crop_scale=(1.0, 1.0)), (500, 20), 3)
    assert params.height.tolist() == [20] * 3
    assert params.width.tolist() == [27] * 3
    assert params.left.tolist() == [236] * 3


def test_switches_and_factors_follow_the_config():
    config = byol(224).right
    params = draw_many(config, (64, 64))
    assert params.jitter.mean() == pytest.approx(0.8, abs=0.03)
    assert params.flip.mean() == pytest.approx(0.5, abs=0.03)
    assert params.grayscale.mean() == pytest.approx(0.2, abs=0.03)
    assert params.solarize.mean() == pytest.approx(0.2, abs=0.03)
    blurred = params.blur_sigma[params.blur_sigma > 0]
    assert len(blurred) / len(params) == pytest.approx(0.1, abs=0.03)
    assert (blurred.min() >= 0.1, blurred.max() <= 2.0) == (True, True)
    assert (params.brightness.min() >= 0.6, params.brightness.max() <= 1.4) == (True, True)
    assert abs(params.hue).max() <= config.hue
    assert params.hue.min() < -0.09
    assert params.hue.max() > 0.09


def test_byols_brightness_is_added_and_nothing_else_is_drawn_otherwise():
    plain, added = (draw_many(byol(224).right.model_copy(update={"colors": colors}), (64, 64)) for colors in ("simclr", "byol"))
    np.testing.assert_allclose(added.brightness, plain.brightness - 1)
    assert_same(replace(added, brightness=plain.brightness, colors="simclr"), plain)


def test_the_24_orders_of_the_jitter_are_equally_likely():
    orders, counts = np.unique(draw_many(ViewConfig(), (64, 64), 12000).order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert ((counts - 500) ** 2 / 500).sum() < 52


def test_making_views_on_light_workers_does_not_import_torch():
    program = "import sys, ray_sassl.views.crop, ray_sassl.views.opencv; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
