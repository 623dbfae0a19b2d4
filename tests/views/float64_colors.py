"""The color operations of SimCLR's and BYOL's code, pixel by pixel in float64, for images (H, W, 3) in [0, 1]."""

from __future__ import annotations

import colorsys

import numpy as np

from ray_sassl.views.draw import JITTER_OPS, ViewParams


def changed(image: np.ndarray, name: str, value: float, colors: str) -> np.ndarray:
    """The image after one operation of the jitter."""
    if name == "brightness":
        image = image + value if colors == "byol" else image * value
    elif name == "contrast":
        mean = image.mean((0, 1))
        image = (image - mean) * value + mean
    else:
        pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
        turn, scale = (value, 1.0) if name == "hue" else (0.0, value)
        pixels = [colorsys.hsv_to_rgb((h + turn) % 1.0, min(s * scale, 1.0), v) for h, s, v in pixels]
        image = np.array(pixels).reshape(image.shape)
    return image.clip(0, 1)


def blurred(image: np.ndarray, sigma: float, kernel_px: int) -> np.ndarray:
    """The image under a Gaussian window, with zeros beyond the border."""
    window = np.exp(-0.5 * (np.arange(kernel_px) - kernel_px // 2) ** 2 / sigma**2)
    padded = np.pad(image, ((kernel_px // 2, kernel_px // 2), (kernel_px // 2, kernel_px // 2), (0, 0)))
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, window / window.sum(), "valid")
    return padded


def color(image: np.ndarray, params: ViewParams) -> np.ndarray:
    """The image with the parameters of one sample."""
    for op in params.order[0] if params.jitter[0] else ():
        image = changed(image, JITTER_OPS[op], getattr(params, JITTER_OPS[op])[0], params.colors)
    if params.grayscale[0]:
        image = np.repeat((image @ [0.299, 0.587, 0.114])[:, :, None], 3, axis=2)
    if params.blur_sigma[0] > 0:
        image = blurred(image, params.blur_sigma[0], params.blur_kernel_px)
    return np.where(image < params.solarize_threshold, image, 1 - image) if params.solarize[0] else image
