"""Schedules as functions of the step: linear warm-up, then a half cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

from __future__ import annotations

import math
from typing import Literal

Ramp = Literal["(s+1)/(n+1)", "s/n", "s/(n-1)"]
"""The share of the peak at update `s` (from 0) of a warm-up of `n`. `s/n` begins at 0 and reaches the peak after the warm-up (the official
codes of SimCLR, BYOL, MoCo v3, Barlow Twins and VICReg), `s/(n-1)` with its last update (SwAV and DINO); `(s+1)/(n+1)` wastes no update."""
Counting = Literal["(s+1)/n", "s/n", "s/(n-1)"]
"""The share of a run of `n` updates that is done after update `s` (from 0)."""


def warmup_cosine(
    step: float, *, total_steps: int, warmup_steps: int, peak: float, final: float = 0.0, start: float = 0.0, ramp: Ramp = "(s+1)/(n+1)"
) -> float:
    """The learning rate of update number `step` (from 0).

    Rises linearly from `start` as `ramp` says, then falls from `peak` at step `warmup_steps` to `final` along a half cosine that would end
    at `total_steps`.
    """
    if step < warmup_steps:
        match ramp:
            case "(s+1)/(n+1)":
                return start + (peak - start) * (step + 1) / (warmup_steps + 1)
            case "s/n":
                return start + (peak - start) * step / warmup_steps
            case "s/(n-1)":
                return start + (peak - start) * step / max(1, warmup_steps - 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def share_done(step: int, total_steps: int, counting: Counting) -> float:
    """The share of the run that is done after update number `step` (from 0), in [0, 1]."""
    match counting:
        case "(s+1)/n":
            return (step + 1) / total_steps
        case "s/n":
            return step / total_steps
        case "s/(n-1)":
            return step / max(1, total_steps - 1)


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
