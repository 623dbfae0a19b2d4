"""A digest of a network's weights: equal digests mean equal weights."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn


def weights_sha256(network: nn.Module) -> str:
    """sha256 over the names, types, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()
