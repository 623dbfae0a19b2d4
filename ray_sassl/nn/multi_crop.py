"""Views of different sizes through one network: a pass for each size, as in the official code of SwAV (Caron et al. 2020, arXiv
2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn


def encode_by_size(network: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """The network's outputs (V * B, F) for V views (B, 3, H, W), in their order.

    Neighbors of one size pass as one batch, so that batch normalization sees all of them, and sees each size by itself.
    """
    batches = [torch.cat(list(group)) for _, group in groupby(views, key=lambda view: view.shape)]
    return torch.cat([network(batch) for batch in batches])
