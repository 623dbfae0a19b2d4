import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ray_sassl.nn.normalize import Normalization, normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("is_channels_first", [True, False])
def test_both_layouts_give_what_torchvision_gives(is_channels_first):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 9, 7), dtype=np.uint8))
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    result = normalize(images if is_channels_first else images.permute(0, 2, 3, 1).contiguous(), MEAN, STD)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_images_stay_as_they_are():
    images = torch.full((2, 5, 5, 3), 7, dtype=torch.uint8)
    normalize(images, MEAN, STD)
    assert (images == 7).all()


def test_lower_precision_is_rounded_once_at_the_end():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(normalize(images, MEAN, STD, torch.bfloat16), normalize(images, MEAN, STD).bfloat16())


def test_every_byte_comes_back_from_its_normalized_value():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    for mean, std in ((MEAN, STD), ((0.5, 0.0, 1.0), (1.0, 0.01, 0.5))):
        normalization = Normalization(mean, std, torch.device("cpu"))
        assert torch.equal(normalization.pixels(normalization(images)).permute(0, 2, 3, 1), images)
