"""Resizing without anti-aliasing, as TensorFlow's `tf.image.resize(antialias=False)` does: each pixel is interpolated from the two
(bilinear) or four (bicubic, Keys 1981 with a = -0.5) nearest rows and columns, however much is left out between them. Taps beyond the image
have no weight. Differs from TensorFlow: its bicubic weights come from a table of 1,024 offsets, and its views are not rounded to bytes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ray_sassl.views.draw import Box, Interpolation

_NUM_TAPS = {"bilinear": 2, "bicubic": 4}


class PointSampled:
    """Resizes the box of an image; see `crop.Resize`."""

    def __init__(self, size_px: int, interpolation: Interpolation) -> None:
        self._size_px = size_px
        self._interpolation: Interpolation = interpolation

    def __call__(self, image: np.ndarray, box: Box, mirrored: bool, view: np.ndarray) -> None:
        left, top, right, bottom = (round(edge) for edge in box)  # whole pixels, since no image was decoded smaller
        part = image[top:bottom, left:right]
        resized = _along_first(part, self._size_px, self._interpolation)
        resized = _along_first(resized.transpose(1, 0, 2), self._size_px, self._interpolation).transpose(1, 0, 2)
        resized = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
        view[:] = resized[:, ::-1] if mirrored else resized


def _along_first(image: np.ndarray, size_px: int, interpolation: Interpolation) -> np.ndarray:
    """(size_px, W, 3) float32 of an image (H, W, 3)."""
    places, weights = taps(image.shape[0], size_px, interpolation)
    resized = np.zeros((size_px, *image.shape[1:]), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
        resized += weight[:, None, None] * image[place]
    return resized


@lru_cache(maxsize=1024)
def taps(num_pixels: int, size_px: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """(size_px, T) int64 places and (size_px, T) float32 weights of the pixels that each resized pixel is made of; pixels have centers at
    halves."""
    num_taps = _NUM_TAPS[interpolation]
    center = (np.arange(size_px) + 0.5) * num_pixels / size_px - 0.5
    places = np.floor(center).astype(np.int64)[:, None] + np.arange(1 - num_taps // 2, 1 + num_taps // 2)
    weights = _kernel(np.abs(center[:, None] - places), interpolation)
    if interpolation == "bicubic":
        weights *= (places >= 0) & (places < num_pixels)
        weights /= weights.sum(1, keepdims=True)
    return places.clip(0, num_pixels - 1), weights.astype(np.float32)


def _kernel(distance: np.ndarray, interpolation: Interpolation) -> np.ndarray:
    if interpolation == "bilinear":
        return 1 - distance
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, far)
