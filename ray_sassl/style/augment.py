"""SASSL: style augmentation of views, around any stylizer.

Rojas-Gomez et al., "SASSL: Enhancing Self-Supervised Learning via Neural Style Transfer", TMLR 2024, arXiv 2312.01187, Algorithm 1.
It stands between the crop and the color operations. Every choice is keyed by (seed, epoch, sample id, view). Styles come from the same
block of images, from a bank of codes, or from the Gaussian of a bank (Jackson, Atapour-Abarghouei, Bonner, Breckon and Obara 2019,
"Style Augmentation: Data Augmentation via Style Randomization", arXiv 1809.05375, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ray_sassl.files.paths import LocalPath
from ray_sassl.keyed import DrawKey, Stream
from ray_sassl.nn.chunks import Chunks
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.plugins import FrozenConfig
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.views.recipes import ordered

_CPU_PIXELS = 1 << 19
"""Pixels of the images that are handled at once on a CPU: more fall out of the caches between one step and the next."""
Share = Annotated[float, Field(ge=0, le=1)]
ShareInterval = Annotated[tuple[Share, Share], AfterValidator(ordered)]


class SasslConfig(FrozenConfig):
    """When and how strongly views are stylized; the defaults are the paper's (section 4)."""

    views: Literal["left", "right", "both", "small", "all"] = "left"
    """The views that may be stylized: one of the two large ones, or `both`; of multi-crop also the `small` ones, or `all`."""
    prob: Share = 0.8
    """Chance that a view is stylized (p)."""
    alpha: ShareInterval = (0.1, 0.3)
    """Feature blending: share of the style's code in the mixed code, uniform in this interval."""
    beta: ShareInterval = (0.1, 0.3)
    """Image blending: share of the stylized image in the output, uniform in this interval."""
    style_source: Literal["in_batch", "bank", "gaussian"] = "in_batch"
    """Where styles come from: `in_batch`, the same view of another image of the block; `bank`, a style of the bank; `gaussian`, a draw from
    the Gaussian that has the mean and the covariance of the bank's codes."""
    bank: Annotated[str | None, LocalPath()] = None
    """Path or URI of the style bank, which `ray-sassl stylize bank` makes; every node must reach it."""

    @model_validator(mode="after")
    def _bank_where_it_is_used(self) -> Self:
        if self.style_source != "in_batch" and self.bank is None:
            raise ValueError(f"style_source={self.style_source!r} takes its styles from a bank; set sassl.bank to its file")
        if self.style_source == "in_batch" and self.bank is not None:
            raise ValueError(
                "bank has no effect with style_source='in_batch'; set style_source='bank' or 'gaussian', or leave the bank out"
            )
        return self

    def load_bank(self, bundle_id: str | None = None) -> StyleBank | None:
        """The style bank, where styles come from one.

        Args:
            bundle_id: Of the stylizer that its codes are for, which is then checked.
        """
        return None if self.bank is None else StyleBank.load(self.bank, bundle_id)

    def stylizes(self, view: int) -> bool:
        """Whether view number `view` (0 left, 1 right, the small ones from 2 on) may be stylized."""
        kind = ("left", "right", "small")[min(view, 2)]
        return self.views in ("all", kind) or (self.views == "both" and kind != "small")


@dataclass(frozen=True)
class StyleParams:
    """What is done to each of B views.

    Attributes:
        apply: (B,) bool, whether the view is stylized.
        alpha: (B,) float64, share of the style's code.
        beta: (B,) float64, share of the stylized image.
        partner: (B,) int64, the row of the block whose image gives the style (`in_batch`), or the style's row in the bank (`bank`).
        code: (B, C) float32, the styles' codes, where they do not come from the block.
    """

    apply: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    partner: np.ndarray | None = None
    code: np.ndarray | None = None


def draw_styles(config: SasslConfig, key: DrawKey, bank: StyleBank | None = None) -> StyleParams:
    """The parameters of the key's view of one plan block's samples; nothing is applied where the config leaves the view out.

    Args:
        bank: The config's bank, for styles from a bank or its Gaussian.
    """
    apply, alpha, beta = key.uniform(Stream.STYLE, 3).T
    partner, code = _draw_sources(config, key, bank)
    return StyleParams(
        apply=(apply < config.prob) & config.stylizes(key.view),
        alpha=config.alpha[0] + (config.alpha[1] - config.alpha[0]) * alpha,
        beta=config.beta[0] + (config.beta[1] - config.beta[0]) * beta,
        partner=partner,
        code=code,
    )


def _draw_sources(config: SasslConfig, key: DrawKey, bank: StyleBank | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the styles come from, and their codes where these are known: the `partner` and `code` of `StyleParams`."""
    if config.style_source == "in_batch":
        return style_partners(key), None
    assert bank is not None
    if config.style_source == "bank":
        style = bank.pick(key.uniform(Stream.STYLE_PARTNER, 1)[:, 0])
        return style, bank.codes[style]
    return None, bank.gaussian_codes(key.normal(Stream.STYLE_PARTNER, len(bank.mean)))


def style_partners(key: DrawKey) -> np.ndarray:
    """For each row of a block, the row (B,) int64 that gives its style: a permutation without fixed points, whatever the rows' order.

    The samples stand in a ring, ordered by a draw for each sample, and each takes the next one's style. A block of one row is its own
    partner.
    """
    draws = key.uniform(Stream.STYLE_PARTNER, 1)[:, 0]
    ring = np.lexsort((np.asarray(key.sample_id), np.broadcast_to(key.epoch, draws.shape), draws))
    partners = np.empty(len(ring), np.int64)
    partners[ring] = np.roll(ring, -1)
    return partners


@torch.inference_mode()
def stylize_views(
    stylizer: Stylizer,
    views: Sequence[np.ndarray],
    key: DrawKey,
    config: SasslConfig,
    device: torch.device,
    bank: StyleBank | None = None,
    chunks: Chunks | None = None,
) -> list[np.ndarray]:
    """The views of one whole plan block, stylized where drawn; views that are left as they are come back without a copy.

    Args:
        views: (B, H, W, 3) uint8 each, cropped, with their natural colors.
        key: Of the samples' draws; each view has draws of its own.
        bank: The config's bank, for styles from a bank or its Gaussian; its codes are of this stylizer.
        chunks: How many images the stylizer gets at once.
    """
    styled = []
    for number, images in enumerate(views):
        if not config.stylizes(number):
            styled.append(images)
            continue
        params = draw_styles(config, replace(key, view=number), bank)
        styled.append(_stylize(stylizer, images, params, device, chunks or Chunks()) if params.apply.any() else images)
    return styled


def _stylize(stylizer: Stylizer, images: np.ndarray, params: StyleParams, device: torch.device, chunks: Chunks) -> np.ndarray:
    content = np.flatnonzero(params.apply)
    needed = content
    if params.code is None:
        # One pass gives the codes both of the images that are stylized (z_c) and of those whose style they take (z_s).
        assert params.partner is not None
        needed = np.union1d(content, params.partner[content])
    most = max(1, _CPU_PIXELS // math.prod(images.shape[1:3])) if device.type == "cpu" else None
    codes = torch.cat([codes for _, codes in chunks.map(lambda rows: stylizer.embed(to_float(images[rows], device)), needed, most)])
    code_of = np.empty(len(images), np.int64)
    code_of[needed] = np.arange(len(needed))

    def stylized(rows: np.ndarray) -> np.ndarray:
        z_c = codes[torch.from_numpy(code_of[rows]).to(device)]
        if params.code is None:
            assert params.partner is not None
            z_s = codes[torch.from_numpy(code_of[params.partner[rows]]).to(device)]
        else:
            z_s = torch.from_numpy(params.code[rows]).to(device)
        alpha, beta = (torch.from_numpy(values[rows]).to(device, torch.float32) for values in (params.alpha, params.beta))
        return to_uint8(blend(stylizer, to_float(images[rows], device), z_c, z_s, alpha, beta))

    styled = images.copy()
    for rows, pixels in chunks.map(stylized, content, most):
        styled[rows] = pixels
    return styled


def blend(stylizer: Stylizer, content: Tensor, z_c: Tensor, z_s: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Algorithm 1 on a batch.

    Args:
        content: (B, 3, H, W) float in [0, 1].
        z_c: (B, C), the content images' own codes.
        z_s: (B, C), the style images' codes.
        alpha: (B,), share of the style's code.
        beta: (B,), share of the stylized image.
    """
    z = torch.lerp(z_c, z_s, alpha[:, None])
    x = stylizer.render(content, z)
    return torch.lerp(content, x.to(content.dtype), beta[:, None, None, None])
