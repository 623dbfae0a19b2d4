"""The resources of a cluster, for a run whose config is chosen for it."""

from __future__ import annotations

import math

import ray

from ray_sassl.orchestrate.runtime.capacity import offered, present
from ray_sassl.runs.recipe import Machine

_WITHOUT_BFLOAT16 = ("P4", "P100", "K80", "V100", "T4", "M60")
_CAREFUL_BYTES = 16 * 2**30
"""Memory of a small GPU, since Ray does not tell the memory of GPUs."""


def cluster_machine() -> Machine:
    """The GPUs of the cluster that this process is connected to: GPUs that are up, else GPUs that its autoscaler may start."""
    count = present("GPU") or offered("GPU")
    num_gpus = 1 if count == math.inf else int(count)
    names = [name.removeprefix("accelerator_type:") for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    has_bfloat16 = num_gpus > 0 and bool(names) and not set(names) & set(_WITHOUT_BFLOAT16)
    return Machine(num_gpus, _CAREFUL_BYTES if num_gpus else 0, has_bfloat16)
