"""The color operations as batched torch tensor operations, on any device; `opencv.py` does the same on CPUs without torch.

All functions take explicit parameters for each sample and draw nothing. Images are (B, 3, H, W) float in [0, 1]; factors are (B,). The
operations equal torchvision's on float images, or those of SimCLR's and BYOL's code, and like these each clamps to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.nn.upload import upload
from ray_sassl.views.draw import JITTER_OPS, ViewParams

Border = Literal["reflect", "constant"]
_GRAY_WEIGHTS = (0.299, 0.587, 0.114)


def color(images: Tensor, params: ViewParams) -> Tensor:
    """The images (B, 3, H, W) with jitter, grayscale, blur and solarization applied where drawn; `images` are not changed."""
    views = images.clone()
    for position in range(len(JITTER_OPS)):
        for number, name in enumerate(JITTER_OPS):
            _apply(_JITTER[params.colors][name], views, params.jitter & (params.order[:, position] == number), getattr(params, name))
    _apply(lambda x, _: grayscale(x), views, params.grayscale, params.grayscale)
    border: Border = "reflect" if params.colors == "torchvision" else "constant"
    _apply(lambda x, sigma: blur(x, sigma, params.blur_kernel_px, border), views, params.blur_sigma > 0, params.blur_sigma)
    _apply(lambda x, _: solarize(x, params.solarize_threshold), views, params.solarize, params.solarize)
    return views


def _apply(operation: Callable[[Tensor, Tensor], Tensor], views: Tensor, chosen: np.ndarray, values: np.ndarray) -> None:
    """Replaces the chosen rows of `views` by `operation(rows, values)`."""
    rows = np.flatnonzero(chosen)
    if len(rows) == 0:
        return
    index = upload(torch.from_numpy(rows), views.device)
    amounts = upload(torch.from_numpy(np.ascontiguousarray(values[rows])).to(views.dtype), views.device)
    views[index] = operation(views[index], amounts)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scales each image by its factor."""
    return (_per_image(factors) * images).clamp(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each image away from (factor > 1) or toward its mean gray."""
    return _blend(images, _luminance(images).mean(dim=(2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each pixel away from (factor > 1) or toward its gray."""
    return _blend(images, _luminance(images), factors)


def add_brightness(images: Tensor, summands: Tensor) -> Tensor:
    """Adds its summand to each image, as in BYOL's code."""
    return (_per_image(summands) + images).clamp(0, 1)


def adjust_channel_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each channel away from (factor > 1) or toward its own mean, as TensorFlow does."""
    return _blend(images, images.mean(dim=(2, 3), keepdim=True), factors)


def adjust_hsv_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scales the saturation of each pixel in HSV, up to 1, as TensorFlow does: hue and value, its largest channel, stay."""
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    most = value / torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    return value - (value - images) * torch.minimum(_per_image(factors), most)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turns the color circle of each image by its shift in turns, through HSV."""
    value, largest = images.max(dim=1)
    chroma = value - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    difference = torch.where(largest == 0, green - blue, torch.where(largest == 1, blue - red, red - green))
    safe_chroma = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = difference / safe_chroma + 2 * largest + 6 * shifts[:, None, None]
    # Each channel falls from `value` to `value - chroma` with its distance on the circle from its own primary color.
    offsets = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype)[:, None, None]
    k = (sextant[:, None] + offsets).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """The images without color, still with three channels."""
    return _luminance(images).expand_as(images)


def blur(images: Tensor, sigmas: Tensor, kernel_px: int, border: Border = "reflect") -> Tensor:
    """Each image under its own Gaussian window (sigma in pixels, > 0) of `kernel_px`, an odd number; beyond the border it is mirrored or
    black."""
    num_images, channels, height, width = images.shape
    radius = min(kernel_px // 2, height - 1, width - 1) if border == "reflect" else kernel_px // 2
    distance = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernels = torch.softmax(-0.5 * (distance / sigmas[:, None]).square(), dim=1)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]
    planes = F.pad(images, (radius, radius, radius, radius), mode=border).reshape(1, num_images * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=num_images * channels)
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=num_images * channels)
    return planes.reshape(images.shape)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Inverts the values at or above the threshold."""
    return torch.where(images >= threshold, 1 - images, images)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirrors the chosen images (B,) bool from left to right."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def _blend(images: Tensor, toward: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(toward.expand_as(images), images, _per_image(factors)).clamp(0, 1)


def _luminance(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return (_GRAY_WEIGHTS[0] * red + _GRAY_WEIGHTS[1] * green + _GRAY_WEIGHTS[2] * blue)[:, None]


def _per_image(factors: Tensor) -> Tensor:
    return factors[:, None, None, None]


_TORCHVISION = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation, "hue": adjust_hue}
_SIMCLR = _TORCHVISION | {"contrast": adjust_channel_contrast, "saturation": adjust_hsv_saturation}
_JITTER = {"torchvision": _TORCHVISION, "simclr": _SIMCLR, "byol": _SIMCLR | {"brightness": add_brightness}}
