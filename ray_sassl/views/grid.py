"""Images in rows and columns, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 4
_BACKGROUND = (255, 255, 255)
_INK = (30, 30, 30)
TEXT_PX = 12
"""Height of titles and captions."""
LINE_PX = TEXT_PX + 2 * _GAP_PX
"""Height of the line of titles."""


def image_grid(
    rows: Sequence[Sequence[np.ndarray]], column_titles: Sequence[str], captions: Sequence[Sequence[str]], cell_px: int
) -> bytes:
    """A PNG of images in rows and columns.

    Args:
        rows: Images (H, W, 3) uint8; each is scaled to `cell_px`, small images without smoothing, so that their pixels stay visible.
        column_titles: One title per column.
        captions: The line under each image, in the shape of `rows`; may be empty.
        cell_px: Side of a cell in pixels.
    """
    font = ImageFont.load_default(TEXT_PX)
    caption_px = LINE_PX if any(text for line in captions for text in line) else _GAP_PX
    width = _GAP_PX + len(column_titles) * (cell_px + _GAP_PX)
    canvas = Image.new("RGB", (width, LINE_PX + len(rows) * (cell_px + caption_px)), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(column_titles):
        draw.text((_GAP_PX + column * (cell_px + _GAP_PX), _GAP_PX), title, _INK, font)
    for line, (images, texts) in enumerate(zip(rows, captions, strict=True)):
        top = LINE_PX + line * (cell_px + caption_px)
        for column, (image, text) in enumerate(zip(images, texts, strict=True)):
            left = _GAP_PX + column * (cell_px + _GAP_PX)
            smoothing = Image.Resampling.NEAREST if image.shape[0] < cell_px else Image.Resampling.LANCZOS
            canvas.paste(Image.fromarray(image).resize((cell_px, cell_px), smoothing), (left, top))
            draw.text((left, top + cell_px + 2), text, _INK, font)
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()
