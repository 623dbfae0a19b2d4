"""Where a training process runs: its rank, its device, and the few questions that it asks its launcher."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_sassl.nn.gather import all_gather
from ray_sassl.process.stages import Spent, StageTimes
from ray_sassl.train.speed import Speed, Stream
from ray_sassl.train.watchdog import Beat, Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")


class Context(Protocol):
    """All that the loop knows about its environment; Ray is one launcher among others.

    Attributes:
        rank: This process's number, 0 to `world_size` - 1; rank 0 writes the record.
        world_size: The number of training processes.
        device: Where this process computes.
        stream: Where the stream runs.
    """

    rank: int
    world_size: int
    device: torch.device
    stream: Stream

    def report(self, metrics: dict[str, float]) -> None:
        """Report progress to the launcher; called on rank 0 at every logged step. Must not block."""

    def report_speed(self, speed: Speed) -> None:
        """Report what an epoch's time went to; called on rank 0. Must not block."""

    def beat(self, beat: Beat | None) -> None:
        """Tell what this rank does, or None when it has done its part; called from a thread of the loop. May block."""

    def spent(self) -> Spent:
        """The time of the stream's processes since the start, as far as it is known. Must not block."""
        ...

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
    stream: Stream = field(default_factory=Stream)
    times: StageTimes = field(default_factory=StageTimes)
    """What the stream in this process counts its time in."""
    stall_s: float = 60.0
    """As in the config's `fault.stall_s`."""
    speeds: list[Speed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._watchdog = Watchdog(self.stall_s)

    def report(self, metrics: dict[str, float]) -> None:
        self.reports.append(metrics)

    def report_speed(self, speed: Speed) -> None:
        self.speeds.append(speed)

    def beat(self, beat: Beat | None) -> None:
        if beat is None:
            self._watchdog.leave(self.rank)
            return
        self._watchdog.note(beat)
        if (standing := self.times.standing()) is not None:
            self._watchdog.note_stream(standing)
        if alarm := self._watchdog.alarm():
            log.warning("%s", alarm)

    def spent(self) -> Spent:
        return self.times.total()

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


def from_rank_zero(value: T) -> T:
    """Rank 0's value, such as a few numbers and words, on every rank; every rank must call it."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0, group=_cpu_group())
    return shared[0]


def bytes_from_rank_zero(content: bytes, size: int) -> bytes:
    """Rank 0's bytes, `size` of them, on every rank; every rank must call it."""
    if not size:
        return b""
    shared = torch.frombuffer(bytearray(content or size), dtype=torch.uint8)
    dist.broadcast(shared, src=0, group=_cpu_group())
    return content or shared.numpy().tobytes()


def to_rank_zero(mine: Any, context: Context) -> list[Any]:
    """On rank 0 each rank's object, in the order of the ranks, on the others nothing; every rank must call it at the same step."""
    if context.world_size == 1:
        return [mine]
    found = [None] * context.world_size if context.rank == 0 else None
    dist.gather_object(mine, found, group=_cpu_group())
    return found or []


@contextmanager
def buffers_of_rank_zero(network: nn.Module, context: Context) -> Iterator[None]:
    """Within the block the network's buffers, such as running statistics, are those of rank 0, whose network the checkpoints have; then its
    own again. Every rank must do so at the same step."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()] if context.world_size > 1 else []
    own = [buffer.clone() for buffer in buffers]
    try:
        with torch.no_grad():
            for buffer in buffers:
                dist.broadcast(buffer, 0)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, own, strict=True):
                buffer.copy_(value)


@lru_cache(maxsize=1)
def _cpu_group() -> Any:
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def over_ranks(values: Sequence[float], context: Context) -> list[list[float]]:
    """Each rank's values, in the order of the ranks; every rank must call it at the same step."""
    if context.world_size == 1:
        return [list(values)]
    return all_gather(torch.tensor([list(values)], dtype=torch.float64, device=context.device)).tolist()
