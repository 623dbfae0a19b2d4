from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.style.stylizers import Stylizer

PACKAGE = "ray_sassl.style.stylizers"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(shared_dir, stylizer) -> torch.Tensor:
    """(4, 3, S, S) float32, where S is 64, or what the stylizer needs."""
    side = max(64, stylizer.min_px)
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:4]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module", params=plugin_names(PACKAGE))
def stylizer(request) -> Stylizer:
    config = load_plugin(PACKAGE, request.param).Config()
    with pytest.MonkeyPatch.context() as patch:
        if config.published_weights() is not None:
            patch.setenv("RAY_SASSL_CACHE", str(request.getfixturevalue("weights_cache")))
        return config.build(CPU)


def test_codes_are_float32_of_the_stated_width(stylizer, photos):
    codes = stylizer.embed(photos)
    assert codes.shape == (len(photos), stylizer.code_size)
    assert codes.dtype == torch.float32
    assert stylizer.bundle_id


def test_rendering_keeps_shape_and_dtype_and_stays_in_range(stylizer, photos):
    rendered = stylizer.render(photos, stylizer.embed(photos.flip(0)))
    assert rendered.shape == photos.shape
    assert rendered.dtype == photos.dtype
    assert rendered.min() >= 0
    assert rendered.max() <= 1


def test_an_image_rendered_in_its_own_style_stays_itself(stylizer, photos):
    """To the last bits for closed forms; networks repaint it, and change it less than another image's style does."""
    codes = stylizer.embed(photos)
    own = (stylizer.render(photos, codes) - photos).abs().mean(dim=(1, 2, 3))
    assert own.max() < 0.2
    for by in range(1, len(photos)):
        other = (stylizer.render(photos, codes.roll(by, 0)) - photos).abs().mean(dim=(1, 2, 3))
        assert own.mean() <= 0.8 * other.mean()


def test_rendering_changes_none_of_its_inputs(stylizer, photos):
    before, codes = photos.clone(), stylizer.embed(photos.flip(0))
    codes_before = codes.clone()
    stylizer.render(photos, codes)
    torch.testing.assert_close(photos, before, atol=0, rtol=0)
    torch.testing.assert_close(codes, codes_before, atol=0, rtol=0)


def test_a_batch_gives_what_each_image_gives(stylizer, photos):
    codes = stylizer.embed(photos)
    for row in range(len(photos)):
        one = slice(row, row + 1)
        torch.testing.assert_close(stylizer.embed(photos[one]), codes[one], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(stylizer.render(photos[one], codes[one]), stylizer.render(photos, codes)[one], atol=2e-3, rtol=0)


def test_both_memory_formats_give_the_same(stylizer, photos):
    last = photos.contiguous(memory_format=torch.channels_last)
    codes = stylizer.embed(photos.flip(0))
    torch.testing.assert_close(stylizer.embed(last), stylizer.embed(photos), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(stylizer.render(last, codes), stylizer.render(photos, codes), atol=2e-3, rtol=0)


def test_the_config_knows_the_smallest_images_that_can_be_stylized(stylizer, request):
    assert load_plugin(PACKAGE, request.node.callspec.params["stylizer"]).Config.min_px == stylizer.min_px
