"""Images as networks take them: float, zero mean and unit deviation per channel, channels_last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalization:
    """What `normalize` does, with its constants on the device: making them anew at each call would copy them there, and wait.

    Args:
        mean: Mean of each channel, of intensities in [0, 1].
        std: Standard deviation of each channel, of intensities in [0, 1].
        device: Where the images are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        # (x / 255 - mean) / std = x * scale + shift
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(3, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(3, 1, 1)

    def pixels(self, x: Tensor) -> Tensor:
        """The uint8 images (B, 3, H, W) that became `x`."""
        return ((x - self._shift) / self._scale).round_().to(torch.uint8)

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """As `normalize`; computed in place on the one float copy."""
        if images.shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        x = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return torch.addcmul(self._shift, x, self._scale, out=x).to(dtype)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 RGB images, (B, H, W, 3) or (B, 3, H, W) -> (B, 3, H, W) of `dtype` in channels_last memory format.

    Args:
        images: The images; if both layouts fit, (B, 3, H, W) is assumed.
        mean: Mean of each channel, of intensities in [0, 1].
        std: Standard deviation of each channel, of intensities in [0, 1].
        dtype: dtype of the result.
    """
    return Normalization(mean, std, images.device)(images, dtype)
