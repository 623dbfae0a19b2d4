"""Host tensors to a device, without making the host wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def upload(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device; on a CPU `x` itself. A copy to a GPU goes through pinned memory, since any other waits for all work of the GPU."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


class UploadsAside:
    """Uploads beside what the device computes, on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, move: Callable[[], T], tensors_of: Callable[[T], Iterable[Tensor]]) -> Callable[[], T]:
        """Start the uploads that `move` makes; the function that is returned gives what they made to the stream that is current by then,
        which waits for them.

        Args:
            tensors_of: All tensors on the device of what `move` returns.
        """
        if self._stream is None:
            moved = move()
            return lambda: moved
        with torch.cuda.stream(self._stream):
            moved, uploaded = move(), torch.cuda.Event()
            uploaded.record()

        def take() -> T:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(uploaded)
            for tensor in tensors_of(moved):
                tensor.record_stream(here)  # so that its memory is not given to the next upload before it was used
            return moved

        return take
