"""The device of an actor or worker that Ray has given a GPU or a share of one."""

from __future__ import annotations

import os

from ray_sassl.process.errors import UsageError

PRETEND = "RAY_SASSL_PRETEND_GPUS"
"""Set to 1 on nodes that only pretend to have GPUs, as in tests: processes that are given one compute on CPUs."""


class NoGpuError(UsageError):
    """Ray has given a process a GPU that does not exist."""


def pretends_gpus() -> bool:
    """Whether this node only pretends to have GPUs."""
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
            f"cluster/Dockerfile). If nodes only pretend to have GPUs, set {PRETEND}=1 on them."
        )
    return "cuda"
