"""Tensors of all workers in one, with gradients or without; without torch.distributed they are handed back as they came.

Every worker must bring the same shape. A loss that each worker takes as the mean over its own rows of the gathered tensors has, after
DistributedDataParallel's averaging, the gradients of the mean over the global batch: its scale does not know how many workers there are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_sassl.nn.upload import upload


def world_size() -> int:
    """The number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_objects(mine: Any) -> list[Any]:
    """An object of each worker, such as a list of strings, in the order of their ranks; every worker must call it."""
    if world_size() == 1:
        return [mine]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, mine)
    return parts


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """(B, ...) of each of W workers -> (W * B, ...) in the order of their ranks, equal on all of them; detached."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def exchange_rows(x: Tensor, order: Tensor) -> Tensor:
    """This worker's rows (B, ...) of the global batch in another order; each row is sent to the one worker that needs it.

    Args:
        x: (B, ...) this worker's rows of the global batch.
        order: (W * B,) int64 on the CPU, a permutation that is equal on all workers: row i of the new order is row `order[i]`.
    """
    size, size_of_all = len(x), world_size()
    wanted = order.view(size_of_all, size)  # by the worker that wants them
    is_mine = wanted // size == rank()
    source, by_source = (wanted[rank()] // size).sort(stable=True)
    counts = source.bincount(minlength=size_of_all).tolist()
    sent = x[upload(wanted[is_mine] - rank() * size, x.device)].contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, counts, is_mine.sum(1).tolist())
    return received[upload(by_source.argsort(), x.device)]


def all_gather_with_gradient(x: Tensor) -> Tensor:
    """As `all_gather`; the gradient of a worker's rows is the sum of what all workers' losses send them."""
    return x if world_size() == 1 else _AllGather.apply(x)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def all_reduce(x: Tensor) -> Tensor:
    """The sum of `x` over all workers, equal on all of them; detached, and never `x` itself."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def all_reduce_with_gradient(x: Tensor) -> Tensor:
    """As `all_reduce`; the gradient of a worker's `x` is the sum of what all workers' losses send to the total.

    A loss of such totals, which all workers compute alike, has after DistributedDataParallel's averaging the gradients of one process with
    the global batch.
    """
    return x if world_size() == 1 else _AllReduce.apply(x)  # pyright: ignore[reportReturnType]


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return all_reduce(grad_outputs[0])


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.batch_size = len(x)
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        summed = grad_outputs[0].contiguous().clone()
        dist.all_reduce(summed)
        start = rank() * ctx.batch_size
        return summed[start : start + ctx.batch_size]
