"""Pictures of the views that a run trains on and of what a stylizer does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFont
from torch import Tensor

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index
from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.pipeline import CropBlock, StylizeBlock, ViewSource, crop_blocks, finish_block, windows
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.files import INDEX
from ray_sassl.runs.process import view_source
from ray_sassl.style.augment import blend, draw_styles
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.types import view_name
from ray_sassl.views.grid import TEXT_PX, image_grid
from ray_sassl.views.keyed import DrawKey

_BACKGROUND = (255, 255, 255)


def first_block(source: ViewSource) -> CropBlock:
    """The first block of images that a run sees. Bad rows are skipped here; the run itself counts them.

    Raises:
        UsageError: none of its images can be decoded.
    """
    seen = SeenIds(source.index.num_rows)
    window = next(windows(source, 1, seen))
    bad: list[BadRow] = []
    block = next(crop_blocks(source, window, seen, bad.extend), None)
    if block is None:
        named = "".join(f"\n  {row}" for row in bad[:5])
        raise UsageError(f"none of the images in the first block could be decoded; `ray-sassl data check PATH` lists them all:{named}")
    return block


def read_block(config: ExperimentConfig) -> tuple[ViewSource, CropBlock]:
    """`first_block` of a config's data, without a run."""
    with tempfile.TemporaryDirectory() as folder:
        build_index(config.data).save(Path(folder) / INDEX)
        source = view_source(config, folder)
        return source, first_block(source)


def views_picture(
    config: ExperimentConfig, source: ViewSource, block: CropBlock, stylize_block: StylizeBlock | None, num_rows: int = 8
) -> bytes:
    """A PNG of the network's inputs: for some samples of a block, each view's crop and final form, with and without style augmentation."""
    rows = np.arange(min(num_rows, len(block.sample_id)))
    plain = finish_block(source, block, None)
    styled = finish_block(source, block, stylize_block)
    bank = config.sassl.load_bank() if stylize_block else None
    columns: list[tuple[str, np.ndarray, list[str]]] = []
    for number, side in enumerate(source.views.names):
        columns.append((f"{side} crop", block.views[number], ["" for _ in rows]))
        if stylize_block is not None and config.sassl.stylizes(number):
            key = DrawKey(config.seed, block.epoch, block.sample_id, number)
            styles = draw_styles(config.sassl, key, bank)
            strengths = zip(styles.apply[rows], styles.alpha[rows], styles.beta[rows], strict=True)
            captions = [f"alpha {a:.2f} beta {b:.2f}" if chosen else "not drawn" for chosen, a, b in strengths]
            if styles.code is None:
                columns.append(("its style", block.views[number][styles.partner], ["" for _ in rows]))
            elif styles.partner is not None and bank is not None:
                captions = [f"{storage.name_of(bank.names[style])}, {text}" for style, text in zip(styles.partner, captions, strict=False)]
            columns.append(("stylized", stylize_block(block.views[number], key), captions))
            columns.append((f"{side}, no style", plain[view_name(number)], ["" for _ in rows]))
        columns.append((f"{side} view", styled[view_name(number)], ["" for _ in rows]))
    images = [[array[row] for _, array, _ in columns] for row in rows]
    lines = [[texts[row] for _, _, texts in columns] for row in rows]
    return image_grid(images, [title for title, _, _ in columns], lines, cell_px=max(112, source.views.size_px // 2))


def _shortened(text: str, width_px: int) -> str:
    """The text, or the part of its end that fits."""
    font = ImageFont.load_default(TEXT_PX)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"...{text}") > width_px:
        text = text[1:]
    return f"...{text}"


PREVIEW_STRENGTHS = ((0.2, 0.2), (1.0, 1.0))
"""Alpha and beta that a preview shows: the middle of the paper's intervals, and full strength."""


@torch.inference_mode()
def styles_picture(
    stylizer: Stylizer,
    contents: Sequence[np.ndarray],
    styles: Sequence[np.ndarray],
    device: torch.device,
    strengths: Sequence[tuple[float, float]] = PREVIEW_STRENGTHS,
    style_names: Sequence[str] | None = None,
) -> bytes:
    """A PNG of what a stylizer does, with a row for each content image: the content, the content in its own style (what the network
    loses even if the style stays the same), and the content in each style at each strength. The styles are shown above their columns.

    Args:
        contents: (H, W, 3) uint8 each.
        styles: Squares (S, S, 3) uint8, all of one size.
        strengths: (alpha, beta) pairs.
        style_names: The titles of the styles; by default, their numbers.
    """
    cell_px = min(256, max(112, max(max(image.shape[:2]) for image in contents)))
    blank = np.full((cell_px, cell_px, 3), _BACKGROUND, np.uint8)
    codes = stylizer.embed(to_float(np.stack(styles), device))
    titles, header, header_captions = ["content", "own style"], [blank, blank], ["", "alpha 0 beta 1"]
    names = style_names or [f"style {number + 1}" for number in range(len(styles))]
    for name, style in zip(names, styles, strict=True):
        for alpha, beta in strengths:
            titles.append(_shortened(name, cell_px))
            header.append(style)
            header_captions.append(f"alpha {alpha:g} beta {beta:g}")
    rows, captions = [header], [header_captions]
    for image in contents:
        content = to_float(image[None], device)
        z_c = stylizer.embed(content)

        def stylized(z_s: Tensor, alpha: float, beta: float, content: Tensor = content, z_c: Tensor = z_c) -> np.ndarray:
            strength = (torch.tensor([value], device=device) for value in (alpha, beta))
            return to_uint8(blend(stylizer, content, z_c, z_s, *strength))[0]

        row = [image, stylized(z_c, 0.0, 1.0)]
        row += [stylized(codes[[number]], alpha, beta) for number in range(len(styles)) for alpha, beta in strengths]
        rows.append(row)
        captions.append(["" for _ in row])
    return image_grid(rows, titles, captions, cell_px)
