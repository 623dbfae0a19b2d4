"""SASSL: style augmentation of views, around any stylizer.

Rojas-Gomez et al., "SASSL: Enhancing Self-Supervised Learning via Neural Style Transfer", TMLR 2024, arXiv 2312.01187, Algorithm 1.
It is applied between the crop and the color operations. Every choice is keyed by (seed, epoch, sample id, view). Styles come from the same
block of images, from a bank of codes, or from the Gaussian of a bank (Jackson, Atapour-Abarghouei, Bonner, Breckon and Obara 2019,
"Style Augmentation: Data Augmentation via Style Randomization", arXiv 1809.05375, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ray_sassl.nn.chunks import Chunks, is_out_of_memory
from ray_sassl.nn.pixels import as_float, to_uint8, upload
from ray_sassl.nn.upload import UploadsAside
from ray_sassl.nn.upload import upload as transfer
from ray_sassl.process.stages import in_turn
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.views.keyed import DrawKey, Stream

_CPU_PIXELS = 1 << 19
"""Pixels that are handled at once on a CPU: more would not stay in the caches between one step and the next."""


@dataclass(frozen=True)
class StyleParams:
    """What is done to each of B views.

    Attributes:
        apply: (B,) bool, whether the view is stylized.
        alpha: (B,) float64, share of the style's code.
        beta: (B,) float64, share of the stylized image.
        partner: (B,) int64, the row of the block whose image gives the style (`in_batch`), or the style's row in the bank (`bank`).
        code: (B, C) float32, the codes of the styles, if they do not come from the block.
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
    """Where the styles come from, and their codes if they are known: the `partner` and `code` of `StyleParams`."""
    if config.style_source == "in_batch":
        return style_partners(key), None
    assert bank is not None
    if config.style_source == "bank":
        style = bank.pick(key.uniform(Stream.STYLE_PARTNER, 1)[:, 0])
        return style, bank.codes[style]
    return None, bank.gaussian_codes(key.normal(Stream.STYLE_PARTNER, len(bank.mean)))


def style_partners(key: DrawKey) -> np.ndarray:
    """For each row of a block, the row (B,) int64 that gives its style: a permutation without fixed points, in any order of rows.

    The samples form a ring, sorted by one draw for each sample, and each takes the style of the next one. A block of one row is its own
    partner.
    """
    draws = key.uniform(Stream.STYLE_PARTNER, 1)[:, 0]
    ring = np.lexsort((np.asarray(key.sample_id), np.broadcast_to(key.epoch, draws.shape), draws))
    partners = np.empty(len(ring), np.int64)
    partners[ring] = np.roll(ring, -1)
    return partners


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


@dataclass(frozen=True, eq=False)
class BlockStyles:
    """The codes and strengths that Algorithm 1 uses for the B images of a block, on one device.

    Attributes:
        z_c: (B, C), the images' own codes.
        z_s: (B, C), the codes of their styles.
        alpha: (B,), share of the style's code.
        beta: (B,), share of the stylized image.
    """

    z_c: Tensor
    z_s: Tensor
    alpha: Tensor
    beta: Tensor

    @classmethod
    def of(cls, params: StyleParams, embed: Callable[[np.ndarray], Tensor], code_size: int, device: torch.device) -> BlockStyles:
        """Compute the codes that have an effect; the others are 0.

        Args:
            embed: Computes the codes (n, C) of the images in some rows (n,).
        """
        needed = np.flatnonzero(params.apply & (params.alpha < 1))
        if params.code is None:
            # One pass computes the codes of the images that are stylized (z_c) and of those whose style they take (z_s).
            assert params.partner is not None
            needed = np.union1d(needed, params.partner[params.apply])
        z_c = torch.zeros((len(params.apply), code_size), device=device)
        if len(needed):
            z_c[_on(device, needed)] = embed(needed)
        if params.code is not None:
            z_s = _on(device, params.code)
        else:
            assert params.partner is not None
            z_s = z_c[_on(device, params.partner)]
        alpha, beta = (_on(device, values.astype(np.float32)) for values in (params.alpha, params.beta))
        return cls(z_c, z_s, alpha, beta)

    def blend(self, stylizer: Stylizer, content: Tensor, rows: np.ndarray) -> Tensor:
        """Algorithm 1 on the images `content` (n, 3, H, W) in some rows (n,)."""
        at = _on(content.device, rows)
        return blend(stylizer, content, self.z_c[at], self.z_s[at], self.alpha[at], self.beta[at])


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    """The values on the device, by a copy that the host does not wait for."""
    return transfer(torch.from_numpy(values), device)


@dataclass(frozen=True, eq=False)
class StyleAugmentation:
    """Style augmentation of views with one stylizer.

    Several threads may call it. One at a time computes, so that memory is that of one; the others upload their pixels meanwhile.

    Attributes:
        stylizer: Computes style codes and renders styles.
        config: Which views are stylized, and how.
        device: Where the stylizer computes.
        bank: The config's bank, for styles from a bank or its Gaussian; its codes are of this stylizer.
        chunks: How many images the stylizer gets at once.
    """

    stylizer: Stylizer
    config: SasslConfig
    device: torch.device
    bank: StyleBank | None = None
    chunks: Chunks = field(default_factory=Chunks)
    _turn: Lock = field(default_factory=Lock, init=False, repr=False)
    _uploads: UploadsAside = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_uploads", UploadsAside(self.device))

    @torch.inference_mode()
    def stylize(self, images: np.ndarray, key: DrawKey, finish: Callable[[Tensor, np.ndarray], Tensor] | None = None) -> np.ndarray:
        """One view of a whole plan block, stylized where drawn and then finished; an unchanged array is returned without a copy.

        Pixels go to the device once and come back once; everything in between works on floats, chunk by chunk.

        Args:
            images: (B, H, W, 3) uint8, cropped, with their natural colors.
            key: The key of the view's draws.
            finish: Changes the images (n, 3, H, W) float in [0, 1] of some rows (n,) after they were stylized and before they are rounded.
        """
        params = draw_styles(self.config, key, self.bank)
        changed = np.flatnonzero(params.apply) if finish is None else np.arange(len(images))
        if not len(changed):
            return images

        def start() -> Callable[[], Tensor]:
            return self._uploads.start(lambda: upload(images, self.device), lambda pixels: [pixels])

        try:
            pixels = start()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            pixels = None  # the thread that computes has the memory, and will give it back
        with in_turn(self._turn):
            return self._change(images, (pixels or start())(), params, changed, finish)

    def _change(
        self,
        images: np.ndarray,
        pixels: Tensor,
        params: StyleParams,
        changed: np.ndarray,
        finish: Callable[[Tensor, np.ndarray], Tensor] | None,
    ) -> np.ndarray:
        """The view with these rows (n,) changed; `pixels` are the images on the device."""
        most = max(1, _CPU_PIXELS // math.prod(images.shape[1:3])) if self.device.type == "cpu" else None

        def content(rows: np.ndarray) -> Tensor:
            return as_float(pixels.index_select(0, _on(self.device, rows)))

        def embed(rows: np.ndarray) -> Tensor:
            return torch.cat([codes for _, codes in self.chunks.map(lambda part: self.stylizer.embed(content(part)), rows, most)])

        styles = BlockStyles.of(params, embed, self.stylizer.code_size, self.device)

        def change(rows: np.ndarray) -> np.ndarray:
            x = content(rows)
            stylized = np.flatnonzero(params.apply[rows])
            if len(stylized) == len(rows):
                x = styles.blend(self.stylizer, x, rows)
            elif len(stylized):
                at = _on(self.device, stylized)
                x[at] = styles.blend(self.stylizer, x[at], rows[stylized])
            return to_uint8(x if finish is None else finish(x, rows))

        views = images.copy()
        for rows, part in self.chunks.map(change, changed, most):
            views[rows] = part
        return views
