"""Where a training process runs: its rank, its device, and the few things that it asks of whoever launched it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist


class Context(Protocol):
    """All that the loop knows of the world; Ray is one launcher among others.

    Attributes:
        rank: This process's number, 0 to `world_size` - 1; rank 0 writes the record.
        world_size: The number of training processes.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the launcher how far the run is; called on rank 0 at every logged step. Must not block."""

    def stop_requested(self) -> bool:
        """Whether the user asked this run to stop at the next step. Must not block."""
        ...


@dataclass
class LocalContext:
    """One process by itself, or a rank of a process group that the caller has set up."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reports: list[dict[str, float]] = field(default_factory=list)
    stop_at_step: int | None = None
    """Asks for a stop once a report of this step has been made (for tests and debugging)."""

    def report(self, metrics: dict[str, float]) -> None:
        self.reports.append(metrics)

    def stop_requested(self) -> bool:
        return self.stop_at_step is not None and bool(self.reports) and self.reports[-1]["step"] >= self.stop_at_step


def any_rank(flag: bool, context: Context) -> bool:
    """Whether the flag is set on any rank; every rank must call it at the same step."""
    if context.world_size == 1:
        return flag
    count = torch.tensor([int(flag)], device=context.device)
    dist.all_reduce(count)
    return bool(count.item())


def mean_over_ranks(value: float, context: Context) -> float:
    """The mean of each rank's value; every rank must call it at the same step."""
    if context.world_size == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=context.device)
    dist.all_reduce(total)
    return float(total.item()) / context.world_size
