from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ray_sassl.keyed import DrawKey
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import draw
from ray_sassl.views.recipes import ViewConfig


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [32, 96])
def test_crops_equal_torchvisions_on_real_images(shared_dir, interpolation, size_px):
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:8]
    images = [Image.open(path).convert("RGB") for path in paths]
    sizes = np.array([image.size for image in images])
    params = draw(ViewConfig(), sizes, DrawKey(1, 0, np.arange(len(images))))
    views = crop(images, params, size_px, interpolation)
    assert len(set(params.flip)) == 2
    for row, image in enumerate(images):
        box = int(params.top[row]), int(params.left[row]), int(params.height[row]), int(params.width[row])
        expected = tv.resized_crop(image, *box, [size_px, size_px], InterpolationMode(interpolation))
        expected = tv.hflip(expected) if params.flip[row] else expected
        np.testing.assert_array_equal(views[row], np.asarray(expected))
