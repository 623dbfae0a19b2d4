from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ray_sassl.style.networks import fused
from ray_sassl.style.networks.fused import convolution, convolved

PLAIN = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 16), (9, 1, 1)])
@pytest.mark.parametrize("batch", [1, 20])
def test_a_fused_convolution_is_the_convolution_and_then_the_activation(activation, kernel, stride, groups, batch):
    conv = nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=groups).requires_grad_(False)
    assert conv.bias is not None
    x = 10 * torch.randn(batch, 16, 24, 20).contiguous(memory_format=torch.channels_last)
    expected = PLAIN[activation](F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, kernel // 2, 1, groups))
    with torch.inference_mode():
        assert fused.can_fuse(x)
        torch.testing.assert_close(convolved(x, conv, activation).double(), expected, atol=1e-4, rtol=1e-5)


def test_rows_and_columns_have_strides_of_their_own():
    x, weight = torch.randn(2, 4, 20, 12), torch.randn(8, 4, 10, 5)
    with torch.inference_mode():
        torch.testing.assert_close(convolution(x, weight, stride=(2, 1)), F.conv2d(x, weight, stride=(2, 1)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", PLAIN)
def test_gradients_flow_if_asked_for(activation):
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8, requires_grad=True)
    assert not fused.can_fuse(x)
    torch.testing.assert_close(convolved(x, conv, activation), PLAIN[activation](conv(x)))
    convolved(x, conv, activation).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is not None


def test_other_precisions_are_not_fused():
    conv = nn.Conv2d(3, 4, 3).to(torch.bfloat16)
    with torch.inference_mode():
        x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
        assert not fused.can_fuse(x)
        torch.testing.assert_close(convolved(x, conv, "relu"), F.relu(conv(x)))
