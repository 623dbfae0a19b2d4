"""How precisely networks and losses compute: losses in full precision, even if the networks run in bfloat16 or multiply with TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def no_autocast(x: Tensor) -> Iterator[None]:
    """A context in which operations on `x`'s device keep the precision of their inputs, and multiply without TF32."""
    with full_float32(x.device), torch.autocast(x.device.type, enabled=False):
        yield


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """A context in which matrices in float32 are multiplied without TF32; only GPUs have it."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_kernels(device: torch.device, *, benchmark: bool, tf32: bool) -> Callable[[], None]:
    """Set how GPUs compute convolutions and products of matrices from now on; returns what ends it.

    Args:
        benchmark: Time several kernels of each convolution, and keep the quickest.
        tf32: Multiply float32 with TF32.
    """
    if device.type != "cuda":
        return lambda: None
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()

    def choose(benchmark: bool, tf32: bool, matmul: str) -> None:
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
        torch.set_float32_matmul_precision(matmul)

    choose(benchmark, tf32, "high" if tf32 else "highest")
    return lambda: choose(*before)
