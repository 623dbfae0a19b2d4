"""Momentum networks: copies whose weights follow those of the trained network as an exponential moving average.

Only parameters follow. The running statistics of batch normalization are the copy's own, from its own forward passes in training mode,
as in the official code of MoCo (He et al. 2020, arXiv 1911.05722) and of BYOL (Grill et al. 2020, arXiv 2006.07733).
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def momentum_copy(module: ModuleT) -> ModuleT:
    """A deep copy that takes no gradients, so that no optimizer holds it."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_momentum_copy(momentum_network: nn.Module, network: nn.Module, momentum: float) -> None:
    """Moves the copy's parameters in place: copy <- momentum * copy + (1 - momentum) * network."""
    copies, sources = tuple(momentum_network.parameters()), tuple(network.parameters())
    get_ema_multi_avg_fn(momentum)(copies, sources, None)


def cosine_momentum(base: float, progress: float) -> float:
    """The momentum that rises from `base` at progress 0 to 1 at progress 1 (BYOL, section 3.2: 1 - (1 - base)(cos(pi k/K) + 1)/2)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * progress) + 1.0) / 2.0
