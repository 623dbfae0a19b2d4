"""Pillow's filters in vector instructions (AVX2, NEON), by `cykooz-resizer`.

It rounds its weights to 16 bits: of a hundred values at least 99 are Pillow's, the rest differ by one gray level, and with bicubic weights
about two of a million by two levels. Rows and columns are filtered in Pillow's order: values beyond black and white are cut off in between,
so the other order moves sharp edges by up to 20 levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

if TYPE_CHECKING:
    from ray_sassl.views.draw import Box, Interpolation

_FILTERS = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}


class Vectorized:
    """Resizes the box of an image; see `crop.Resize`. The library filters columns first; for the other order the image is transposed."""

    def __init__(self, size_px: int, interpolation: Interpolation) -> None:
        self._size_px = size_px
        self._filter = ResizeAlg.convolution(_FILTERS[interpolation])
        self._whole = ResizeOptions(self._filter, use_alpha=False)
        self._resizer = Resizer()
        self._resized = ImageData(size_px, size_px, PixelType.U8x3)

    def __call__(self, image: np.ndarray, box: Box, mirrored: bool, view: np.ndarray) -> None:
        transposed = not _columns_first(box, self._size_px)
        if transposed:
            image, box = cv2.transpose(image), (box[1], box[0], box[3], box[2])
        height, width = image.shape[:2]
        options = self._whole if box == (0, 0, width, height) else self._options(box)
        self._resizer.resize(ImageData(width, height, PixelType.U8x3, image.tobytes()), self._resized, options)
        resized = np.frombuffer(self._resized.get_buffer(), np.uint8).reshape(view.shape)
        if transposed and mirrored:
            cv2.rotate(resized, cv2.ROTATE_90_CLOCKWISE, dst=view)
        elif transposed:
            cv2.transpose(resized, dst=view)
        elif mirrored:
            cv2.flip(resized, 1, dst=view)
        else:
            view[:] = resized

    def _options(self, box: Box) -> ResizeOptions:
        left, top, right, bottom = box
        return ResizeOptions(self._filter, use_alpha=False, crop_box=CropBox(left, top, right - left, bottom - top))


def _columns_first(box: Box, size_px: int) -> bool:
    """Whether Pillow (since 13) shortens columns before rows: where that makes the second pass much smaller."""
    too_wide, too_high = box[2] - box[0] - size_px, box[3] - box[1] - size_px
    return too_high > 0 and too_high > 2 * too_wide
