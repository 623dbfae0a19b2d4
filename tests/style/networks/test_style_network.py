from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ray_sassl.style.networks.style_network import (
    MobileNetPredictor,
    SmallPredictor,
    StyleTransformer,
    _statistics,
    conditional_instance_norm,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_conditional_instance_norm_is_the_papers_equation():
    x, gamma, beta = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    ours = conditional_instance_norm(x, gamma, beta)
    for sample in range(3):
        for channel in range(4):
            values = x[sample, channel].flatten().tolist()
            mean = sum(values) / 30
            variance = sum((value - mean) ** 2 for value in values) / 30
            for place, value in enumerate(values):
                expected = (value - mean) / (variance + 1e-5) ** 0.5 * gamma[sample, channel] + beta[sample, channel]
                assert abs(ours[sample, channel].flatten()[place] - expected) < 1e-9


def test_conditional_instance_norm_does_not_see_the_contents_scale_and_shift():
    x, gamma, beta = torch.randn(2, 3, 16, 16).double() * 10, torch.randn(2, 3).double(), torch.randn(2, 3).double()
    torch.testing.assert_close(
        conditional_instance_norm(5 * x + 3, gamma, beta), conditional_instance_norm(x, gamma, beta), atol=1e-4, rtol=0
    )


def test_gradients_reach_scale_shift_and_input():
    x, gamma, beta = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4, 4), (2, 3), (2, 3)))
    assert torch.autograd.gradcheck(conditional_instance_norm, (x, gamma, beta))


def test_a_batch_is_stylized_as_its_images_one_by_one():
    network = StyleTransformer(code_size=7).eval()
    images, codes = torch.rand(3, 3, 32, 48), torch.randn(3, 7)
    with torch.inference_mode():
        together = network(images, codes)
        singly = torch.cat([network(images[[row]], codes[[row]]) for row in range(3)])
    assert together.shape == images.shape
    torch.testing.assert_close(together, singly, atol=1e-5, rtol=0)


def test_inference_stylizes_as_training_does():
    network = StyleTransformer(code_size=7)
    images, codes = torch.rand(2, 3, 36, 32), torch.randn(2, 7)
    trained = network(images, codes)
    assert trained.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(network(images, codes), trained.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 33, 64, 65])
def test_the_predictors_convolutions_pad_as_tensorflow_does(size):
    network = MobileNetPredictor(code_size=5)
    x = torch.rand(1, 3, size, size)
    # TensorFlow's SAME: the output is ceil(size / 2) wide, and what is odd of the padding goes to the right.
    total = max(0, (-(-size // 2) - 1) * 2 + 3 - size)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(network.stem(x), F.conv2d(padded, network.stem.weight, network.stem.bias, 2))
    assert network(x).shape == (1, 5)


def test_the_small_predictor_sees_colors_and_not_places():
    network = SmallPredictor(code_size=5).eval()
    image = torch.rand(1, 3, 64, 64)
    assert network(image).shape == (1, 5)
    assert not torch.allclose(network(image), network(image.flip(1)), atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_those_of_each_channel(memory_format):
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64).contiguous(memory_format=memory_format)
    deviation = (x.var((2, 3), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(_statistics(x), torch.cat([x.mean((2, 3)), deviation], dim=1))


def test_statistics_of_a_low_contrast_are_exact_in_bfloat16_too():
    draws = torch.Generator().manual_seed(0)
    images = 0.5 + 0.05 * torch.randn(4, 3, 64, 64, generator=draws)
    for found, expected in zip(_statistics(images.bfloat16()).chunk(2, dim=1), _statistics(images).chunk(2, dim=1), strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0)
