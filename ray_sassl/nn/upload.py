"""Host tensors to a device, without making the host wait for it."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device; on a CPU `x` itself. A copy to a GPU goes through pinned memory, since any other waits for all work of the GPU."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
