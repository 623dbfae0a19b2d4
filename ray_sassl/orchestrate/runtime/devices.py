"""Where an actor or a worker computes that Ray has given a GPU, or a share of one."""

from __future__ import annotations

import os

from ray_sassl.plugins import UsageError

PRETEND = "RAY_SASSL_PRETEND_GPUS"
"""Set to 1 on nodes that only say that they have GPUs, as a cluster of the tests does: what is given one computes on CPUs."""


class NoGpuError(UsageError):
    """Ray has given a GPU that is not there."""


def pretends_gpus() -> bool:
    """Whether this node's GPUs are none."""
    return os.environ.get(PRETEND) == "1"


def device_type(num_gpus: float) -> str:
    """`cuda` for a process that was given GPUs, else `cpu`.

    Raises:
        NoGpuError: torch sees none of them.
    """
    if not num_gpus or pretends_gpus():
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise NoGpuError(
            "Ray has given this process a GPU, and torch sees none: the node lacks a driver, or its image is one for CPUs (see "
            f"cluster/Dockerfile). Where nodes only pretend to have GPUs, set {PRETEND}=1 on them."
        )
    return "cuda"
