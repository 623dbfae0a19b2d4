"""Losses in full precision, even if the networks run in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which operations on `x`'s device keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)
