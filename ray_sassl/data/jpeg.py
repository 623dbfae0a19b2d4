"""JPEGs straight into arrays, by libjpeg-turbo (`simplejpeg`), without a way through Pillow's own image.

Pillow decodes with the same library, so the pixels are the same to the bit. What is unusual or damaged is left to Pillow, which decides
whether it is an image: this module answers None for anything that libjpeg-turbo only warns of.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

_COLOR_SPACES = ("YCbCr", "Gray", "RGB")


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of one or three channels, from its header; None where Pillow is to look at it."""
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):
        return None
    return (int(width), int(height)) if color_space in _COLOR_SPACES else None


def jpeg_pixels(encoded: bytes, size: tuple[int, int], shrink: int = 1) -> np.ndarray | None:
    """The pixels (H, W, 3) uint8, or None where Pillow is to look at it.

    Args:
        size: What `jpeg_size` said.
        shrink: 1, 2, 4 or 8. The image is scaled down to `ceil(size / shrink)` pixels while it is decoded, from fewer coefficients of
            each 8 x 8 block.
    """
    width, height = (-(-length // shrink) for length in size)
    try:
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", min_width=width if shrink > 1 else 0, min_height=height if shrink > 1 else 0)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None
