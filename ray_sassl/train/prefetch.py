"""The next step's batch, on its way to the device while the step before it runs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_sassl.nn.upload import UploadsAside, upload
from ray_sassl.types import TARGETS, Arrays, Batch, view_names


@dataclass(frozen=True)
class _Taken:
    """What was taken from the stream for one step.

    Attributes:
        parts: Gives the step's parts to the stream that computes it, or None where the stream of batches cannot fill the step.
        transfer_s: Seconds that the host took to pin the parts and to start their upload.
    """

    parts: Callable[[], list[Batch]] | None
    transfer_s: float


class Prefetcher:
    """The parts of each step, in the order of the stream, on the device.

    On a device with memory of its own a thread takes the next step's parts from the stream, pins them, and uploads them on a CUDA stream of
    their own while the step runs. On a CPU there is nothing to upload, and the parts are taken when they are needed.

    Args:
        batches: The stream, in parts.
        num_parts: Parts of one step.
        device: Where the steps are computed.
        num_steps: Steps at most; the stream is not read beyond them.
        is_ahead: Whether parts are taken ahead; by default on any device but a CPU.

    Attributes:
        transfer_s: Of the seconds that the last `take` lasted, those for which it waited for the transfer and not for the stream.
    """

    def __init__(
        self, batches: Iterator[Arrays], num_parts: int, device: torch.device, num_steps: int, is_ahead: bool | None = None
    ) -> None:
        self._batches, self._num_parts, self._device, self._num_left = batches, num_parts, device, num_steps
        self._uploads = UploadsAside(device)
        is_ahead = device.type != "cpu" if is_ahead is None else is_ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if is_ahead else None
        self._next: Future[_Taken] | None = None
        self.transfer_s = 0.0

    def take(self) -> list[Batch] | None:
        """The parts of the next step, or None at the end of the stream; a step that the stream cannot fill is dropped."""
        began = time.perf_counter()
        taken = self._fetch() if self._thread is None else self._fetched()
        self.transfer_s = min(taken.transfer_s, time.perf_counter() - began)
        return None if taken.parts is None else taken.parts()

    def close(self) -> None:
        """Take nothing more. What is under way is not waited for, since the stream may never hand out another batch."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _fetched(self) -> _Taken:
        assert self._thread is not None
        taken = (self._next or self._thread.submit(self._fetch)).result()
        self._num_left -= 1
        goes_on = taken.parts is not None and self._num_left > 0
        self._next = self._thread.submit(self._fetch) if goes_on else None
        return taken

    def _fetch(self) -> _Taken:
        arrays = [part for _, part in zip(range(self._num_parts), self._batches, strict=False)]
        began = time.perf_counter()
        if len(arrays) < self._num_parts:
            return _Taken(None, 0.0)
        parts = self._uploads.start(lambda: [to_device(part, self._device) for part in arrays], _tensors_of)
        return _Taken(parts, time.perf_counter() - began)


def _tensors_of(parts: list[Batch]) -> list[Tensor]:
    return [tensor for part in parts for tensor in part.tensors()]


def to_device(arrays: Arrays, device: torch.device) -> Batch:
    """The batch on the device; (B, H, W, 3) arrays become (B, 3, H, W) tensors in channels_last layout without a copy on the host."""

    def move(array: np.ndarray) -> Tensor:
        with warnings.catch_warnings():  # Ray's arrays are read-only views of shared memory, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return upload(torch.from_numpy(array), device)

    rows = {name: arrays[name] for name in ("epoch", "sample_id")}
    views = [move(arrays[name]).permute(0, 3, 1, 2) for name in view_names(arrays)]
    return Batch(views, move(arrays["sample_id"]), rows, move(arrays[TARGETS]) if TARGETS in arrays else None)
