"""Where a training process runs: its rank, its device, and the few questions that it asks its launcher."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Context(Protocol):
    """All that the loop knows about its environment; Ray is one launcher among others.

    Attributes:
        rank: This process's number, 0 to `world_size` - 1; rank 0 writes the record.
        world_size: The number of training processes.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    def report(self, metrics: dict[str, float]) -> None:
        """Report progress to the launcher; called on rank 0 at every logged step. Must not block."""

    def stop_requested(self) -> bool:
        """Whether the user asked this run to stop at the next step. Must not block."""
        ...

    def is_leaving(self) -> bool:
        """Whether a machine of the run is about to go away, so that a checkpoint is needed now. Must not block."""
        ...


@dataclass
class LocalContext:
    """A single process, or a rank of a process group that the caller has set up."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reports: list[dict[str, float]] = field(default_factory=list)
    stop_at_step: int | None = None
    """Requests a stop after this step has been reported (for tests and debugging)."""
    leave_at_step: int | None = None
    """Announces that the machine goes away after this step has been reported (for tests and debugging)."""

    def report(self, metrics: dict[str, float]) -> None:
        self.reports.append(metrics)

    def stop_requested(self) -> bool:
        return self._has_reported(self.stop_at_step)

    def is_leaving(self) -> bool:
        return self._has_reported(self.leave_at_step)

    def _has_reported(self, step: int | None) -> bool:
        return step is not None and bool(self.reports) and self.reports[-1]["step"] >= step


def data_parallel(module: nn.Module, context: Context) -> nn.Module:
    """The module, wrapped if several processes train it together. Buffers are not synchronized, except by the module's own layers."""
    if context.world_size == 1:
        return module
    device_ids = [context.device] if context.device.type == "cuda" else None
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # by torch 2.15
    own_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, **own_buffers)


def on_any_rank(flags: Sequence[bool], context: Context) -> list[bool]:
    """Whether each flag is set on any rank; every rank must call it at the same step.

    The ranks communicate between their CPUs, so no GPU is waited for.
    """
    if context.world_size == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(counts, group=_cpu_group())
    return [bool(count) for count in counts]


@lru_cache(maxsize=1)
def _cpu_group() -> Any:
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def mean_over_ranks(value: float, context: Context) -> float:
    """The mean of each rank's value; every rank must call it at the same step."""
    if context.world_size == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    return float(total.item()) / context.world_size
