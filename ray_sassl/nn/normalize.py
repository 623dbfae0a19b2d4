"""Images as networks take them: float, zero mean and unit deviation per channel, channels_last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 RGB images, (B, H, W, 3) or (B, 3, H, W) -> (B, 3, H, W) of `dtype` in channels_last memory format.

    Args:
        images: The images; if both layouts fit, (B, 3, H, W) is assumed.
        mean: Mean of each channel, of intensities in [0, 1].
        std: Standard deviation of each channel, of intensities in [0, 1].
        dtype: dtype of the result.
    """
    if images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2)
    # (x / 255 - mean) / std = x * scale + shift, computed in place on the one float copy
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(3, 1, 1)
    x = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return torch.addcmul(shift, x, scale, out=x).to(dtype)
