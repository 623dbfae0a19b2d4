"""Pixels as bytes and as numbers: (B, H, W, 3) uint8 arrays to (B, 3, H, W) float32 tensors in [0, 1], and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ray_sassl.nn import upload as transfer


def upload(images: np.ndarray, device: torch.device) -> Tensor:
    """The images (B, H, W, 3) uint8 as a tensor on the device; on a CPU it shares the memory of a writable array."""
    return transfer.upload(torch.from_numpy(images if images.flags.writeable else images.copy()), device)


def as_float(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] of (B, H, W, 3) uint8, on the same device."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] on the device, of (B, H, W, 3) uint8."""
    return as_float(upload(images, device))


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 in NumPy, rounded, of (B, 3, H, W) float in [0, 1]."""
    return (images * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
