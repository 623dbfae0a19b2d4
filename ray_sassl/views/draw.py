"""Draws the parameters of a view for every sample. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import Literal

import numpy as np

from ray_sassl.views.keyed import DrawKey, Stream
from ray_sassl.views.recipes import Colors, ViewConfig

JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
"""The meaning of the numbers in `ViewParams.order`."""

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[float, float, float, float]
"""The part of an image for a view: left, top, right and bottom."""

_ORDERS = np.array(list(permutations(range(4))), dtype=np.int8)
_CROP_TRIES = 10
_NUM_COLOR_DRAWS = 11


@dataclass(frozen=True)
class ViewParams:
    """What is done to each of B images to make one view.

    Attributes:
        top, left, height, width: (B,) int64, the box of the crop in pixels of the image.
        flip: (B,) bool, mirrored left to right after the crop.
        jitter: (B,) bool, whether the four jitter operations are applied.
        brightness, contrast, saturation: (B,) float64 factors; 1 changes nothing. BYOL's brightness is added, and 0 changes nothing.
        hue: (B,) float64 shift in turns of the color circle; 0 changes nothing.
        order: (B, 4) int8, the jitter operations (indices into `JITTER_OPS`) from first to last.
        grayscale: (B,) bool, whether colors are dropped.
        blur_sigma: (B,) float64 in pixels; 0 means no blur.
        solarize: (B,) bool.
        blur_kernel_px: Width of the blur's window, odd.
        solarize_threshold: In [0, 1].
        colors: Whose operations are applied.
    """

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    order: np.ndarray
    grayscale: np.ndarray
    blur_sigma: np.ndarray
    solarize: np.ndarray
    blur_kernel_px: int
    solarize_threshold: float
    colors: Colors = "torchvision"

    def __len__(self) -> int:
        return len(self.flip)

    def take(self, rows: slice | np.ndarray) -> ViewParams:
        """The parameters of some of the samples."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[rows] for name, value in arrays.items() if isinstance(value, np.ndarray)})


def draw(config: ViewConfig, image_sizes: np.ndarray, key: DrawKey) -> ViewParams:
    """The parameters of the key's view for every sample; all but the crop's box are independent of the image sizes.

    Args:
        image_sizes: (B, 2) integers, (width, height) of the decoded images.
    """
    draws = key.uniform(Stream.VIEW, _NUM_COLOR_DRAWS + 2 + 2 * _CROP_TRIES).T
    flip, jitter, brightness, contrast, saturation, hue, order, grayscale, blur, sigma, solarize = draws[:_NUM_COLOR_DRAWS]
    top, left, height, width = crop_boxes(config, np.asarray(image_sizes), draws[_NUM_COLOR_DRAWS:])
    return ViewParams(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=flip < config.flip_prob,
        jitter=jitter < config.jitter_prob,
        brightness=_between(brightness, -config.brightness, config.brightness)
        if config.colors == "byol"
        else _factor(brightness, config.brightness),
        contrast=_factor(contrast, config.contrast),
        saturation=_factor(saturation, config.saturation),
        hue=config.hue * (2 * hue - 1),
        order=_ORDERS[(order * len(_ORDERS)).astype(np.int64)],
        grayscale=grayscale < config.grayscale_prob,
        blur_sigma=np.where(blur < config.blur_prob, _between(sigma, *config.blur_sigma), 0.0),
        solarize=solarize < config.solarize_prob,
        blur_kernel_px=config.blur_kernel_px,
        solarize_threshold=config.solarize_threshold,
        colors=config.colors,
    )


def crop_boxes(config: ViewConfig, image_sizes: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top, left, height and width, each (B,) int64, with the distribution of torchvision's RandomResizedCrop.

    Ten boxes of random area and shape are drawn, and the first one that fits is put at a random place. If none fits, the result is the
    largest central box with an allowed shape.

    Args:
        image_sizes: (B, 2) integers, (width, height).
        draws: (22, B) uniform in [0, 1): two for the place, then ten each for areas and shapes.
    """
    image_width, image_height = image_sizes.T.astype(np.int64)
    areas = image_width * image_height * _between(draws[2 : 2 + _CROP_TRIES], *config.crop_scale)
    ratios = np.exp(_between(draws[2 + _CROP_TRIES :], *np.log(config.crop_ratio)))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths > 0) & (widths <= image_width) & (heights > 0) & (heights <= image_height)
    first, rows = fits.argmax(axis=0), np.arange(len(image_width))
    fallback_width, fallback_height = _central_size(config, image_width, image_height)
    any_fits = fits.any(axis=0)
    width = np.where(any_fits, widths[first, rows], fallback_width)
    height = np.where(any_fits, heights[first, rows], fallback_height)
    top = np.where(any_fits, draws[0] * (image_height - height + 1), (image_height - height) // 2).astype(np.int64)
    left = np.where(any_fits, draws[1] * (image_width - width + 1), (image_width - width) // 2).astype(np.int64)
    return top, left, height, width


def _central_size(config: ViewConfig, image_width: np.ndarray, image_height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    narrowest, widest = config.crop_ratio
    ratio = image_width / image_height
    width = np.where(ratio > widest, np.rint(image_height * widest), image_width)
    height = np.where(ratio < narrowest, np.rint(image_width / narrowest), image_height)
    return np.maximum(width, 1).astype(np.int64), np.maximum(height, 1).astype(np.int64)


def _between(draws: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * draws


def _factor(draws: np.ndarray, strength: float) -> np.ndarray:
    return _between(draws, max(0.0, 1.0 - strength), 1.0 + strength)
