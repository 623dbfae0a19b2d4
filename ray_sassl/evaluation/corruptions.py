"""Common corruptions of images in five severities, after Hendrycks and Dietterich 2019 (arXiv 1903.12261).

Eleven of the paper's fifteen, with the constants of the authors' data sets: those of CIFAR-10-C for images up to 64 px, and those of
ImageNet-C for larger ones. Left out are glass blur and snow (long loops over pixels, filters of one program), frost (needs photographs) and
the elastic transformation (its published constants do not grow with the severity).

Differs from the paper: random draws depend only on (seed, corruption, sample id) and are the same for all severities, so an image only gets
worse; motion blur is our own filter in the form of ImageMagick's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from ray_sassl.evaluation import ImageChange

MAX_SEVERITY = 5
_SMALL_PX = 64
_VERSION = 1

_Corrupt = Callable[[np.ndarray, tuple[float, ...], np.random.Generator], np.ndarray]
"""An image (S, S, 3) float32 in [0, 1], a severity's constants and draws -> the corrupted image, which is clipped afterward."""


@dataclass(frozen=True)
class Corrupted(ImageChange):
    """One corruption at one severity.

    Attributes:
        name: One of `CORRUPTIONS`.
        severity: 0 (no change) to 5.
        seed: Seed of the draws.
    """

    name: str
    severity: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.name} {_VERSION}, severity {self.severity}, seed {self.seed}"

    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        if self.severity == 0:
            return images
        corrupt, small, large = _TABLE[self.name]
        constants = (small if images.shape[1] <= _SMALL_PX else large)[self.severity - 1]
        place = CORRUPTIONS.index(self.name)
        corrupted = np.empty_like(images)
        for row, (image, number) in enumerate(zip(images, sample_id.tolist(), strict=True)):
            rng = np.random.default_rng([self.seed, place, number])
            changed = corrupt(image.astype(np.float32) / 255, constants, rng)
            corrupted[row] = np.clip(np.rint(changed * 255), 0, 255)
        return corrupted


def _gaussian_noise(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    return x + rng.standard_normal(x.shape, np.float32) * constants[0]


def _shot_noise(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Poisson noise of `constants[0]` photons at full intensity."""
    return rng.poisson(x * constants[0]) / constants[0]


def _impulse_noise(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """A share `constants[0]` of the values becomes 0 or 1."""
    draws = rng.random(x.shape, np.float32)
    is_one = rng.random(x.shape, np.float32) < 0.5
    return np.where(draws < constants[0], is_one.astype(np.float32), x)


def _defocus_blur(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    return cv2.filter2D(x, -1, _disc(*constants))


def _motion_blur(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """A trail to one side of each point, with weights of a half Gaussian."""
    length, deviation = 2 * int(constants[0]) + 1, constants[1]
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(length)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    down = length + np.rint(steps * math.sin(angle)).astype(int)
    right = length + np.rint(steps * math.cos(angle)).astype(int)
    np.add.at(kernel, (down, right), weights / weights.sum())
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _zoom_blur(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and its enlargements about its center, by factors from 1 to below `constants[0]`, `constants[1]` apart."""
    factors = np.arange(1, constants[0], constants[1])
    center = (x.shape[0] - 1) / 2
    total = x.copy()
    for factor in factors:
        matrix = np.array([[factor, 0, center * (1 - factor)], [0, factor, center * (1 - factor)]])
        total += cv2.warpAffine(x, matrix, x.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return total / (len(factors) + 1)


def _fog(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Clouds of thickness `constants[0]`; the brightest value stays as bright as it was."""
    thickness, decay = constants
    brightest = x.max()
    clouds = _plasma(2 ** math.ceil(math.log2(x.shape[0])), decay, rng)[: x.shape[0], : x.shape[1]]
    return (x + thickness * clouds[..., None]) * brightest / (brightest + thickness)


def _brightness(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """The value of HSV, which is the largest channel, raised by `constants[0]`; hue and saturation stay."""
    value = x.max(2, keepdims=True)
    raised = np.minimum(value + constants[0], 1)
    return np.where(value > 0, x * (raised / np.maximum(value, 1e-6)), raised)


def _contrast(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * constants[0] + mean


def _pixelate(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    small = max(1, int(x.shape[0] * constants[0]))
    return _pixels(_picture(x).resize((small, small), Image.Resampling.BOX).resize(x.shape[1::-1], Image.Resampling.BOX))


def _jpeg(x: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """JPEG at quality `constants[0]`."""
    out = io.BytesIO()
    _picture(x).save(out, "JPEG", quality=int(constants[0]))
    return _pixels(Image.open(out, formats=["JPEG"]))


def _picture(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32) / 255


@lru_cache(maxsize=16)
def _disc(radius: float, deviation: float) -> np.ndarray:
    """A disc of sum 1 with a soft edge."""
    reach, side = (8, 3) if radius <= 8 else (int(radius), 5)
    place = np.arange(-reach, reach + 1)
    disc = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(disc / disc.sum(), (side, side), deviation)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds (side, side) in [0, 1] by the diamond-square algorithm on a torus: each point is the mean of its four neighbors and a draw,
    whose size falls by `decay` from one scale to the next.

    Args:
        side: A power of two.
    """
    draws = rng.uniform(-1, 1, (side, side))
    clouds = np.zeros((side, side))
    size, step = 1.0, side
    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        sums = corners + np.roll(corners, -1, 0)
        middles = (sums + np.roll(sums, -1, 1)) / 4 + size * draws[half::step, half::step]
        clouds[half::step, half::step] = middles
        above_below = middles + np.roll(middles, 1, 0)
        clouds[::step, half::step] = (above_below + corners + np.roll(corners, -1, 1)) / 4 + size * draws[::step, half::step]
        beside = middles + np.roll(middles, 1, 1)
        clouds[half::step, ::step] = (beside + corners + np.roll(corners, -1, 0)) / 4 + size * draws[half::step, ::step]
        size, step = size / decay, half
    clouds -= clouds.min()
    return (clouds / max(clouds.max(), 1e-12)).astype(np.float32)


def _each(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


_TABLE: dict[str, tuple[_Corrupt, tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (_gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10), _each(0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, _each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (
        _zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, _each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7)),
}
CORRUPTIONS = tuple(_TABLE)
