"""Pixels as bytes and as numbers: (B, H, W, 3) uint8 arrays to (B, 3, H, W) float32 tensors in [0, 1], and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] on the device, of (B, H, W, 3) uint8."""
    pixels = torch.from_numpy(images if images.flags.writeable else images.copy())
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 in NumPy, rounded, of (B, 3, H, W) float in [0, 1]."""
    return (images * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
