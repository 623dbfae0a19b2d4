from __future__ import annotations

import pytest
import torch

from ray_sassl.style.networks.quick_transformer import QuickTransformer, norm_
from ray_sassl.style.networks.style_network import StyleTransformer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _random_network(widths: tuple[int, int, int] = (8, 16, 32), num_blocks: int = 5) -> StyleTransformer:
    return StyleTransformer(7, widths, num_blocks).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (36, 64), (100, 40)])
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_are_those_of_the_transformer(height: int, width: int, batch: int):
    network = _random_network()
    images, codes = torch.rand(batch, 3, height, width), torch.randn(batch, 7)
    torch.testing.assert_close(QuickTransformer(network)(images, codes), network(images, codes), atol=1e-4, rtol=0)


def test_other_widths_are_right_to_the_border_by_float64():
    network = _random_network((4, 4, 8), 1)
    images, codes = torch.rand(2, 3, 32, 32), torch.randn(2, 7)
    reference = StyleTransformer(7, (4, 4, 8), 1).double().eval()
    reference.load_state_dict(network.state_dict())
    expected = reference(images.double(), codes.double())
    torch.testing.assert_close(QuickTransformer(network)(images, codes).double(), expected, atol=1e-4, rtol=0)


def test_it_changes_none_of_its_inputs():
    network = QuickTransformer(_random_network())
    images, codes = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randn(2, 7)
    before = images.clone(), codes.clone()
    first = network(images, codes)
    assert torch.equal(images, before[0])
    assert torch.equal(codes, before[1])
    assert torch.equal(network(images, codes), first)


@pytest.mark.parametrize("shared", [1, 2])
def test_the_norm_is_the_papers_equation(shared: int):
    x, gamma, beta = torch.randn(3, 4, 5, 6) * 3 + 2, torch.randn(3, 4), torch.randn(3, 4)
    ours = norm_(x.clone().contiguous(memory_format=torch.channels_last), gamma, beta, shared)
    for sample in range(3):
        for channel in range(4):
            first = channel // shared * shared
            values = x[sample, first : first + shared].double()
            mean, variance = values.mean(), values.var(correction=0)
            expected = (x[sample, channel].double() - mean) / (variance + 1e-5).sqrt() * gamma[sample, channel] + beta[sample, channel]
            torch.testing.assert_close(ours[sample, channel].double(), expected, atol=1e-5, rtol=0)


def test_a_channel_of_one_value_becomes_its_shift():
    x = torch.full((1, 1, 8, 8), 37.5).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(norm_(x, torch.ones(1, 1), torch.full((1, 1), 0.25)), torch.full((1, 1, 8, 8), 0.25), atol=2e-2, rtol=0)
