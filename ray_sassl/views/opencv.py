"""Changes the colors of views on CPUs with OpenCV and NumPy, without torch, so that light workers stay light.

The operations follow torchvision's (including truncation and rounding), each within one gray level; `ops.py` does the same in torch. Those
of SimCLR's and BYOL's code, which work on floats, are rounded to the nearest level.
Brightness and contrast are linear up to their rounding: where that gives each of the 256 levels its exact value they are one walk of
vector instructions over the image, else a look-up table. Matrices and blurs are applied image by image, in place. Hue is changed in
OpenCV's float32 HSV, in groups of images that fit in a core's cache (at 32 px most of its cost is in the calls). The batched torch
operations take 4 times as long at 32 px and 14 times at 224 px (`benchmarks/views.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from ray_sassl.views.draw import JITTER_OPS, ViewParams

_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114])
_CHUNK_PIXELS = 1 << 18
_HUE_PIXELS = 1 << 16
_LINEAR_PIXELS = 1 << 13
_BLUR_SIGMAS = 3.0
_LEVELS = np.arange(256, dtype=np.float32)
_TRUNCATION = 1e-4
"""Added to half a level less before OpenCV rounds, so that it cuts off and whole numbers stay; above float32's rounding errors."""


def color(images: np.ndarray, params: ViewParams, out: np.ndarray | None = None) -> np.ndarray:
    """The views (B, H, W, 3) uint8 RGB with jitter, grayscale, blur and solarization applied.

    Args:
        images: (B, H, W, 3) uint8 RGB; not changed unless they are also `out`.
        out: Contiguous array for the views; passing `images` itself saves a copy. A new array by default.
    """
    if out is None:
        views = np.array(images, order="C")
    else:
        views = out
        if out is not images:
            np.copyto(views, images)
    num_images, height, width = views.shape[:3]
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, num_images, chunk):
        rows = slice(start, start + chunk)
        _jitter(views[rows], params.take(rows))
        _finish(views[rows], params.take(rows))
    return views


def _jitter(views: np.ndarray, params: ViewParams) -> None:
    for position in range(len(JITTER_OPS)):
        ops = np.where(params.jitter, params.order[:, position], -1)
        for number, name in enumerate(JITTER_OPS):
            rows = np.flatnonzero(ops == number)
            if len(rows):
                _JITTER[params.colors][name](views, rows, getattr(params, name)[rows])


def adjust_brightness(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Scales `views[rows]` (B, H, W, 3) by `factors` (R,), in place."""
    tables = np.minimum(factors[:, None].astype(np.float32) * _LEVELS, 255).astype(np.uint8)
    _apply(views, rows, tables, factors, np.zeros(len(rows)))


def adjust_contrast(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Moves `views[rows]` away from (factor > 1) or toward their mean gray, in place; the mean is rounded, as in Pillow."""
    means = np.array([cv2.mean(views[row])[:3] for row in rows.tolist()]) @ _GRAY_WEIGHTS
    grays = np.floor(means + 0.5).astype(np.float32)[:, None]
    tables = np.clip(grays + factors[:, None].astype(np.float32) * (_LEVELS - grays), 0, 255).astype(np.uint8)
    _apply(views, rows, tables, factors, grays[:, 0] * (1 - factors))


def _apply(views: np.ndarray, rows: np.ndarray, tables: np.ndarray, factors: np.ndarray, offsets: np.ndarray) -> None:
    """Replaces each level of `views[rows]` by that of its row's table (R, 256) uint8, in place.

    `factor * level + offset`, cut off to whole numbers, is nearly always the same table: OpenCV rounds and clips it in half a look-up's
    time. Where a level is so near a whole number that rounding errors decide, and on small images, the table is looked up.
    """
    if views.shape[1] * views.shape[2] < _LINEAR_PIXELS:
        for row, table in zip(rows.tolist(), tables, strict=True):
            cv2.LUT(views[row], table, dst=views[row])
        return
    raised = factors[:, None] * _LEVELS.astype(np.float64) + offsets[:, None] + _TRUNCATION
    is_clear = np.abs(raised - np.rint(raised)) > _TRUNCATION / 2
    is_linear = (is_clear & (np.clip(np.floor(raised), 0, 255) == tables)).all(axis=1)
    for number, row in enumerate(rows.tolist()):
        if is_linear[number]:
            shift = float(offsets[number]) - 0.5 + _TRUNCATION
            cv2.addWeighted(views[row], float(factors[number]), views[row], 0.0, shift, dst=views[row])
        else:
            cv2.LUT(views[row], tables[number], dst=views[row])


def adjust_saturation(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Moves each pixel of `views[rows]` away from or toward its gray, in place; OpenCV rounds, so a half is subtracted to truncate."""
    factors = factors[:, None, None]
    matrices = np.empty((len(rows), 3, 4))
    matrices[:, :, :3] = factors * np.eye(3) + (1 - factors) * _GRAY_WEIGHTS
    matrices[:, :, 3] = -0.499
    for row, matrix in zip(rows.tolist(), matrices, strict=True):
        cv2.transform(views[row], matrix, dst=views[row])


def scale_brightness(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Scales `views[rows]` by `factors` (R,) and rounds, in place."""
    _transform(views, rows, factors, np.zeros((len(rows), 3)))


def add_brightness(views: np.ndarray, rows: np.ndarray, summands: np.ndarray) -> None:
    """Adds `summands` (R,), shares of white, to `views[rows]`, in place."""
    _transform(views, rows, np.ones(len(rows)), np.repeat(255 * summands[:, None], 3, axis=1))


def adjust_channel_contrast(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Moves each channel of `views[rows]` away from (factor > 1) or toward its own mean, as TensorFlow does, in place."""
    means = np.array([cv2.mean(views[row])[:3] for row in rows.tolist()])
    _transform(views, rows, factors, (1 - factors)[:, None] * means)


def _transform(views: np.ndarray, rows: np.ndarray, factors: np.ndarray, offsets: np.ndarray) -> None:
    """`factor * channel + offset` of `views[rows]`, rounded and cut off at black and white, in place; `offsets` (R, 3) are in levels."""
    matrices = np.concatenate([factors[:, None, None] * np.eye(3), offsets[:, :, None]], axis=2)
    for row, matrix in zip(rows.tolist(), matrices, strict=True):
        cv2.transform(views[row], matrix, dst=views[row])


def adjust_hsv_saturation(views: np.ndarray, rows: np.ndarray, factors: np.ndarray) -> None:
    """Scales the saturation of `views[rows]` in HSV by `factors` (R,), up to 1, as TensorFlow does, in place.

    Factors up to 1 move each pixel toward its largest channel, which needs no HSV.
    """
    weaker = factors <= 1
    for row, factor in zip(rows[weaker].tolist(), factors[weaker].tolist(), strict=True):
        red, green, blue = cv2.split(views[row])
        value = cv2.cvtColor(cv2.max(cv2.max(red, green), blue), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(views[row], factor, value, 1 - factor, 0, dst=views[row])

    def scale(hsv: np.ndarray, factors: np.ndarray) -> None:
        saturation = hsv[:, :, :, 1]
        saturation *= factors
        np.minimum(saturation, 1, out=saturation)

    _in_hsv(views, rows[~weaker], factors[~weaker].astype(np.float32), scale)


def adjust_hue(views: np.ndarray, rows: np.ndarray, shifts: np.ndarray) -> None:
    """Turns the color circle of `views[rows]` by `shifts` (R,) turns, in place, in float32 and without Pillow's 8-bit quantization."""

    def turn(hsv: np.ndarray, degrees: np.ndarray) -> None:
        hsv[:, :, :, 0] += degrees

    # OpenCV wraps hues above 360 degrees, but not those below 0.
    _in_hsv(views, rows, (360 * (shifts % 1.0)).astype(np.float32), turn)


def _in_hsv(views: np.ndarray, rows: np.ndarray, amounts: np.ndarray, change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Changes `views[rows]` in place, in groups: `change` is given their hues (in degrees), saturations and values (n, H, W, 3) float32 and
    their `amounts` (n, 1, 1)."""
    height, width = views.shape[1:3]
    group = max(1, min(len(rows), _HUE_PIXELS // (height * width)))
    rgb, hsv = np.empty((2, group, height, width, 3), np.float32)
    for start in range(0, len(rows), group):
        chosen = rows[start : start + group]
        num = len(chosen)
        flat_rgb, flat_hsv = (array[:num].reshape(num * height, width, 3) for array in (rgb, hsv))
        np.multiply(views[chosen[0]] if num == 1 else views[chosen], np.float32(1 / 255), out=rgb[:num])
        cv2.cvtColor(flat_rgb, cv2.COLOR_RGB2HSV, dst=flat_hsv)
        change(hsv[:num], amounts[start : start + group, None, None])
        cv2.cvtColor(flat_hsv, cv2.COLOR_HSV2RGB, dst=flat_rgb)
        if num == 1:
            cv2.convertScaleAbs(flat_rgb, dst=views[chosen[0]], alpha=255)
        else:
            views[chosen] = cv2.convertScaleAbs(flat_rgb, alpha=255).reshape(num, height, width, 3)


def _finish(views: np.ndarray, params: ViewParams) -> None:
    """Grayscale, blur and solarization, image by image; a gray image is blurred as one channel."""
    invert = np.where(255 * params.solarize_threshold <= _LEVELS, 255 - _LEVELS, _LEVELS).astype(np.uint8)
    border = cv2.BORDER_DEFAULT if params.colors == "torchvision" else cv2.BORDER_CONSTANT
    changed = np.flatnonzero(params.grayscale | (params.blur_sigma > 0) | params.solarize)
    for row in changed.tolist():
        view = views[row]
        if params.grayscale[row]:
            view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
        if params.blur_sigma[row] > 0:
            view = blur(view, float(params.blur_sigma[row]), params.blur_kernel_px, border)
        if params.solarize[row]:
            view = cv2.LUT(view, invert)
        if params.grayscale[row]:
            cv2.cvtColor(view, cv2.COLOR_GRAY2RGB, dst=views[row])
        elif view is not views[row]:
            views[row] = view


def blur(image: np.ndarray, sigma: float, kernel_px: int, border: int = cv2.BORDER_DEFAULT) -> np.ndarray:
    """The image (H, W) or (H, W, 3) uint8 blurred by a Gaussian window of `kernel_px`, cut at three sigmas (0.3 % of its weight).

    Beyond its border the image is mirrored, or black with `cv2.BORDER_CONSTANT`.

    `sepFilter2D` is twice as fast as `GaussianBlur` at sigma 1 to 2 on 224 px, and closer to the exact result.
    """
    radius = min(kernel_px // 2, math.ceil(_BLUR_SIGMAS * sigma))
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=border)


_TORCHVISION = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation, "hue": adjust_hue}
_SIMCLR = _TORCHVISION | {"brightness": scale_brightness, "contrast": adjust_channel_contrast, "saturation": adjust_hsv_saturation}
_JITTER = {"torchvision": _TORCHVISION, "simclr": _SIMCLR, "byol": _SIMCLR | {"brightness": add_brightness}}
