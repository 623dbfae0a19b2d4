"""Weights that start to train later than the rest."""

from __future__ import annotations

from torch import Tensor


def freezable(weight: Tensor, trains: Tensor) -> Tensor:
    """`weight`, to the bit, whose gradient is multiplied by `trains`, a scalar: 0 keeps it frozen, 1 trains it.

    The gradient is zero rather than absent, so that DistributedDataParallel still finds it; and since `trains` is a tensor, a checkpoint can
    hold it and no device is waited for.
    """
    frozen = weight.detach()
    return frozen + trains * (weight - frozen)
