"""SASSL: style augmentation of views, around any stylizer.

Rojas-Gomez et al., "SASSL: Enhancing Self-Supervised Learning via Neural Style Transfer", TMLR 2024, arXiv 2312.01187, Algorithm 1.
It stands between the crop and the colour operations. Every choice is keyed by (seed, epoch, sample id, view).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ray_sassl.keyed import Stream, uniform
from ray_sassl.plugins import FrozenConfig
from ray_sassl.stylize import Stylizer
from ray_sassl.views.recipes import ordered

Share = Annotated[float, Field(ge=0, le=1)]
ShareInterval = Annotated[tuple[Share, Share], AfterValidator(ordered)]


class SasslConfig(FrozenConfig):
    """When and how strongly views are repainted; the defaults are the paper's (section 4)."""

    views: Literal["left", "right", "both"] = "left"
    """The views that may be repainted."""
    prob: Share = 0.8
    """Chance that a view is repainted (p)."""
    alpha: ShareInterval = (0.1, 0.3)
    """Feature blending: share of the style's code in the mixed code, uniform in this interval."""
    beta: ShareInterval = (0.1, 0.3)
    """Image blending: share of the repainted image in the output, uniform in this interval."""
    style_source: Literal["in_batch"] = "in_batch"
    """Where styles come from: `in_batch`, the same view of another image of the block."""

    def repaints(self, view: int) -> bool:
        """Whether view number `view` (0 left, 1 right) may be repainted."""
        return self.views == "both" or ("left", "right").index(self.views) == view


@dataclass(frozen=True)
class StyleParams:
    """What is done to each of B views.

    Attributes:
        apply: (B,) bool, whether the view is repainted.
        alpha: (B,) float64, share of the style's code.
        beta: (B,) float64, share of the repainted image.
        partner: (B,) int64, the row of the block whose image gives the style.
    """

    apply: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    partner: np.ndarray


def draw_styles(config: SasslConfig, sample_id: np.ndarray, epoch: np.ndarray | int, seed: int, view: int) -> StyleParams:
    """The parameters of view number `view` of the samples of one plan block; nothing is applied where the config leaves the view out."""
    apply, alpha, beta = uniform(seed, epoch, sample_id, Stream.STYLE + view, 3).T
    return StyleParams(
        apply=(apply < config.prob) & config.repaints(view),
        alpha=config.alpha[0] + (config.alpha[1] - config.alpha[0]) * alpha,
        beta=config.beta[0] + (config.beta[1] - config.beta[0]) * beta,
        partner=style_partners(sample_id, epoch, seed, view),
    )


def style_partners(sample_id: np.ndarray, epoch: np.ndarray | int, seed: int, view: int) -> np.ndarray:
    """For each row of a block, the row (B,) int64 that gives its style: a permutation without fixed points, whatever the rows' order.

    The samples stand in a ring, ordered by a draw of each one's own key, and each takes the next one's style. A block of one row is its
    own partner.
    """
    draws = uniform(seed, epoch, sample_id, Stream.STYLE_PARTNER + view, 1)[:, 0]
    ring = np.lexsort((np.asarray(sample_id), np.broadcast_to(epoch, draws.shape), draws))
    partners = np.empty(len(ring), np.int64)
    partners[ring] = np.roll(ring, -1)
    return partners


@torch.inference_mode()
def stylize_views(
    stylizer: Stylizer,
    views: Sequence[np.ndarray],
    sample_id: np.ndarray,
    epoch: np.ndarray | int,
    seed: int,
    config: SasslConfig,
    device: torch.device,
    batch_size: int = 32,
) -> list[np.ndarray]:
    """The views of one whole plan block, repainted where drawn; views that are left as they are come back without a copy.

    Args:
        views: (B, H, W, 3) uint8 each, cropped, with their natural colours.
        sample_id: (B,) integers.
        epoch: (B,) integers or one.
        batch_size: Images that the stylizer gets at once.
    """
    styled = []
    for number, images in enumerate(views):
        params = draw_styles(config, sample_id, epoch, seed, number)
        styled.append(_stylize(stylizer, images, params, device, batch_size) if params.apply.any() else images)
    return styled


def _stylize(stylizer: Stylizer, images: np.ndarray, params: StyleParams, device: torch.device, batch_size: int) -> np.ndarray:
    content = np.flatnonzero(params.apply)
    # One pass gives the codes both of the images that are repainted (z_c) and of those whose style they take (z_s).
    needed = np.union1d(content, params.partner[content])
    codes = torch.cat([stylizer.embed(to_float(images[rows], device)) for rows in _chunks(needed, batch_size)])
    code_of = np.empty(len(images), np.int64)
    code_of[needed] = np.arange(len(needed))
    styled = images.copy()
    for rows in _chunks(content, batch_size):
        z_c = codes[torch.from_numpy(code_of[rows]).to(device)]
        z_s = codes[torch.from_numpy(code_of[params.partner[rows]]).to(device)]
        alpha, beta = (torch.from_numpy(values[rows]).to(device, torch.float32) for values in (params.alpha, params.beta))
        styled[rows] = to_uint8(blend(stylizer, to_float(images[rows], device), z_c, z_s, alpha, beta))
    return styled


def blend(stylizer: Stylizer, content: Tensor, z_c: Tensor, z_s: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Algorithm 1 on a batch.

    Args:
        content: (B, 3, H, W) float in [0, 1].
        z_c: (B, C), the content images' own codes.
        z_s: (B, C), the style images' codes.
        alpha: (B,), share of the style's code.
        beta: (B,), share of the repainted image.
    """
    z = torch.lerp(z_c, z_s, alpha[:, None])
    x = stylizer.render(content, z)
    return torch.lerp(content, x.to(content.dtype), beta[:, None, None, None])


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] on the device, of (B, H, W, 3) uint8."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 in NumPy, rounded, of (B, 3, H, W) float in [0, 1]."""
    return (images * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
