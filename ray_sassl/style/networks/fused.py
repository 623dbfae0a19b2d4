"""Convolutions that apply their activation while the result is still in the processor's cache.

On a CPU, at inference, oneDNN does both in one pass, through an operation that PyTorch's compiler uses. This also avoids the slow path that
`torch.conv2d` takes for 1 x 1 convolutions of few images on one thread. Otherwise the activation follows the convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "relu6"]
_ONEDNN: dict[Activation, tuple[str, list[float]]] = {"none": ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}


def convolved(x: Tensor, conv: nn.Conv2d, activation: Activation = "none", padding: Sequence[int] | None = None) -> Tensor:
    """activation(conv(x)).

    Args:
        padding: (rows, columns), instead of the convolution's own padding.
    """
    assert not isinstance(conv.padding, str)
    pad, stride = list(padding or conv.padding), conv.stride
    return convolution(x, conv.weight, conv.bias, stride, pad, conv.groups, activation)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    groups: int = 1,
    activation: Activation = "none",
) -> Tensor:
    """activation(conv2d(x)) with the arguments of `torch.conv2d`; strides and paddings are (rows, columns)."""
    if can_fuse(x):
        name, scalars = _ONEDNN[activation]
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, list(padding), list(stride), [1, 1], groups, name, scalars, "")
    y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), 1, groups)
    match activation:
        case "relu":
            return F.relu(y)
        case "relu6":
            return F.relu6(y)
        case _:
            return y


def can_fuse(x: Tensor) -> bool:
    """Whether convolutions of `x` are fused here: float32 on a CPU that oneDNN knows, without gradients."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled() and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
