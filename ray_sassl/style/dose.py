"""The dose of an augmentation: how much it changes the images to which it is applied.

Pixels are compared in gray levels (mean absolute difference, 255 from black to white). A *strength* s stands for alpha and beta, both
uniform in [s / 2, 3 s / 2] and at most 1: 0 changes no style, 0.2 is the papers' strength (SASSL, arXiv 2312.01187, section 4), and 2 is
the style at full strength. The dose rises with the strength, and how fast depends on stylizer, styles and images; so a curve is measured,
and read backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_sassl.process.errors import UsageError

Curve = Sequence[tuple[float, float]]
"""(strength, dose in gray levels) pairs; both rise, and the first strength is 0."""
STRENGTHS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
"""Those of a curve."""
_SSIM_PX = 11
"""The side of the window that structural similarity compares."""


@dataclass(frozen=True)
class Change:
    """How much images were changed; means over them.

    Attributes:
        pixels: Mean absolute difference in gray levels.
        ssim: Structural similarity of the luminance, 1 for equal images; None for images below 11 px.
    """

    pixels: float
    ssim: float | None


def change_of(before: np.ndarray, after: np.ndarray) -> Change:
    """How far images (B, H, W, 3) uint8 were changed."""
    pixels = np.abs(before.astype(np.int16) - after).mean(dtype=np.float64)
    return Change(float(pixels), _ssim(before, after) if min(before.shape[1:3]) >= _SSIM_PX else None)


def _ssim(before: np.ndarray, after: np.ndarray) -> float:
    import torch

    from ray_sassl.nn.pixels import to_float
    from ray_sassl.style.distillation.fidelity import luminance, ssim

    with torch.inference_mode():
        images = (luminance(to_float(x, torch.device("cpu")).contiguous()) for x in (before, after))
        return float(ssim(*images).mean())


def interval_at(strength: float) -> tuple[float, float]:
    """The ends of alpha and of beta at a strength."""
    low, high = (min(1.0, float(f"{strength * factor:.6g}")) for factor in (0.5, 1.5))
    return low, high


def rising(doses: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """The curve of doses that were measured at `STRENGTHS`; where noise would make it fall it is level."""
    return tuple(zip(STRENGTHS, (round(dose, 4) for dose in np.maximum.accumulate(doses).tolist()), strict=True))


def strength_for(curve: Curve, dose: float) -> float:
    """The smallest strength with this dose, read between the curve's points.

    Raises:
        UsageError: not even the largest strength has it.
    """
    strengths, doses = zip(*curve, strict=True)
    if not 0 <= dose <= doses[-1]:
        raise UsageError(f"a dose of {dose:.4g} gray levels is not possible here: full strength gives {doses[-1]:.4g}")
    upper = int(np.searchsorted(doses, dose))
    if upper == 0:
        return float(strengths[0])
    share = (dose - doses[upper - 1]) / (doses[upper] - doses[upper - 1])
    return float(strengths[upper - 1] + share * (strengths[upper] - strengths[upper - 1]))
