"""The learning rate as a function of the step: linear warm-up, then a half cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float = 0.0) -> float:
    """The learning rate of update number `step` (from 0).

    Rises linearly to reach `peak` at step `warmup_steps`, then falls to `final` along a half cosine that would end at `total_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def scaled_lr(base_lr: float, global_batch: int, scaling: str) -> float:
    """The peak learning rate for a global batch.

    Args:
        base_lr: The rate for a batch of 256 (`linear`, Goyal et al. 2017), for a batch of 1 (`sqrt`, SimCLR appendix B.1), or for any batch
            (`none`).
        scaling: `linear`, `sqrt` or `none`.
    """
    match scaling:
        case "linear":
            return base_lr * global_batch / 256
        case "sqrt":
            return base_lr * math.sqrt(global_batch)
        case "none":
            return base_lr
    raise AssertionError(scaling)
