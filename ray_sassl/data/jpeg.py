"""Decode JPEGs directly into arrays with libjpeg-turbo (`simplejpeg`), without Pillow.

Pillow decodes with the same library, so the pixels are the same to the bit. Unusual or damaged files are left to Pillow, which decides
whether they are images: this module returns None whenever libjpeg-turbo gives a warning.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

_COLOR_SPACES = ("YCbCr", "Gray", "RGB")


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of one or three channels, from its header; None if Pillow must decode it."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):
        return None
    return (int(width), int(height)) if color_space in _COLOR_SPACES else None


def jpeg_pixels(encoded: bytes, size: tuple[int, int], shrink: int = 1) -> np.ndarray | None:
    """The pixels (H, W, 3) uint8, or None if Pillow must decode it.

    Args:
        size: The result of `jpeg_size`.
        shrink: 1, 2, 4 or 8. The image is scaled down to `ceil(size / shrink)` pixels while it is decoded, from fewer coefficients of
            each 8 x 8 block.
    """
    width, height = (-(-length // shrink) for length in size)
    try:
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", min_width=width if shrink > 1 else 0, min_height=height if shrink > 1 else 0)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
