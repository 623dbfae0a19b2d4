"""Checkpoints written while training continues: the loop copies the state, and a thread writes the copy during the next steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_sassl.data.seen import SeenIds
from ray_sassl.nn.gather import gather_objects
from ray_sassl.process.ending import told
from ray_sassl.process.errors import UsageError
from ray_sassl.train.checkpoint import Checkpoint, write_checkpoint
from ray_sassl.train.checkpoint_folder import checkpoint_path, whole_checkpoints
from ray_sassl.train.context import Context
from ray_sassl.train.divergence import DivergedError, DivergenceWatch, end_diverged
from ray_sassl.train.optim import load_optimizer
from ray_sassl.types import Arrays


class CheckpointNotWrittenError(UsageError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class CheckpointWriter:
    """Writes a run's checkpoints one at a time; rank 0 has one.

    Args:
        run_dir: Local path or URI.
        config_yaml: The resolved config.
        keep: How many checkpoints to keep.
    """

    def __init__(self, run_dir: str, config_yaml: str, keep: int) -> None:
        self._run_dir, self._config_yaml, self._keep = run_dir, config_yaml, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, method: nn.Module, state: dict[str, Any], seen: SeenIds, before: Callable[[], None] = lambda: None) -> None:
        """Copy the state and write it in the thread. Waits for the previous checkpoint, so at most one copy is held.

        Args:
            before: Called in the thread before the checkpoint is written, to flush the record.

        Raises:
            CheckpointNotWrittenError: the previous checkpoint could not be written.
        """
        self.wait()
        weights, copy = copied((method.state_dict(), state))
        ready = _when_copied()
        self._pending = self._thread.submit(self._write, step, weights, copy, seen.copy(), ready, before)

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written; does not wait."""
        return self._pending is not None and not self._pending.done()

    def has_failed(self) -> bool:
        """Whether writing the latest checkpoint is known to have failed; does not wait."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            CheckpointNotWrittenError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """End the thread once it has written everything."""
        self._thread.shutdown(wait=True)

    def _write(self, step: int, weights: dict[str, Tensor], state: dict[str, Any], seen: SeenIds, *first: Callable[[], None]) -> None:
        try:
            for action in first:
                action()
            write_checkpoint(self._run_dir, step, weights, state, seen, self._config_yaml, self._keep)
        except (OSError, UsageError) as error:
            whole = [path for number, path in whole_checkpoints(self._run_dir) if number != step]
            last = f"The last whole one is {whole[-1]}" if whole else "There is no earlier one"
            raise CheckpointNotWrittenError(
                f"the checkpoint of step {step} could not be written to {checkpoint_path(self._run_dir, step)}: {error}. {last}. "
                "Fix the cause (for example, free some space), then continue with --resume."
            ) from error


def copied(value: Any) -> Any:
    """The same tree with every tensor copied to the CPU. Copies from a GPU are asynchronous, see `_when_copied`."""
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.detach().to("cpu", copy=True)
        host = torch.empty_like(value, device="cpu", pin_memory=True)
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


def _when_copied() -> Callable[[], None]:
    """A function that waits for the copies started so far. Later work of the GPU may change the originals, since it runs after the
    copies."""
    if not torch.cuda.is_available():
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


@dataclass
class RunSaver:
    """A run's seen samples and its checkpoints: all ranks call it at the same steps, and rank 0 writes.

    Attributes:
        context, run_dir, config_yaml, keep, method, optimizer: The run's.
        seen: Samples that this rank has seen since the newest checkpoint, and those that all ranks had seen by then.
        extra_state: Facts to keep in every checkpoint.
        before: Called before a checkpoint is written, to flush the record.
        saved: The path of the newest checkpoint; it is whole once `finish` has returned.
        saved_step: Its step; 0 without a checkpoint.
    """

    context: Context
    run_dir: str
    config_yaml: str
    keep: int
    method: nn.Module
    optimizer: torch.optim.Optimizer
    seen: SeenIds
    extra_state: dict[str, Any] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    saved: str = ""
    saved_step: int = 0

    def __post_init__(self) -> None:
        self.extra_state = dict(self.extra_state)
        self._writer = CheckpointWriter(self.run_dir, self.config_yaml, self.keep)
        self._begun_at = float("-inf")

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take over the optimizer's state and what was seen."""
        load_optimizer(self.optimizer, checkpoint.state["optimizer"])
        self.seen = checkpoint.seen.copy()
        self.saved, self.saved_step = checkpoint.path, checkpoint.step

    def has_trained_on(self, parts: Sequence[Arrays]) -> None:
        """Mark the rows as seen."""
        for part in parts:
            self.seen.add(part["epoch"], part["sample_id"])

    def is_ready(self, apart_s: float) -> bool:
        """Whether this process has begun no checkpoint for so many seconds, and is writing none; asked of rank 0. Always, for 0 seconds."""
        return not apart_s or (not self._writer.is_writing() and time.monotonic() - self._begun_at >= apart_s)

    def save(self, step: int, lr: float, watch: DivergenceWatch) -> None:
        """Save a checkpoint of this step with the samples that all ranks have seen; every rank must call it.

        Raises:
            DivergedError: a weight is not a finite number; earlier checkpoints stay.
            CheckpointNotWrittenError: the checkpoint before this one could not be written.
        """
        if not torch.isfinite(nn.utils.get_total_norm([parameter.detach() for parameter in self.method.parameters()])):
            raise self.diverged(watch, lr, "the weights are not finite")
        if self.context.world_size > 1:
            self.seen.merge(SeenIds.decode(content) for content in gather_objects(self.seen.encode()))
        error, self._begun_at = None, time.monotonic()
        if self.context.rank == 0:
            state = {"optimizer": self.optimizer.state_dict(), **self.extra_state}
            try:
                self._writer.save(step, self.method, state, self.seen, self.before)
            except CheckpointNotWrittenError as failed:
                error = failed
        self._raise_on_all(error)
        self.saved, self.saved_step = checkpoint_path(self.run_dir, step), step

    def diverged(self, watch: DivergenceWatch, lr: float, what: str = "") -> DivergedError:
        """The error that ends a run which has diverged, once the checkpoint that is under way is whole; every rank must call it.

        Args:
            watch: Knows the bad step.
            lr: Its learning rate.
            what: What is not finite, in words, if it is not the loss.
        """
        failed = None
        try:
            self.finish()
        except CheckpointNotWrittenError as error:
            failed = error
        diverged = end_diverged(watch.bad_step(), self.run_dir, self.context, lr, what)
        if failed is not None:
            diverged.add_note(told(failed))
        return diverged

    def has_failed(self) -> bool:
        """Whether writing a checkpoint is known to have failed; does not wait."""
        return self._writer.has_failed()

    def finish(self) -> None:
        """Wait until everything is written; every rank must call it.

        Raises:
            CheckpointNotWrittenError: it could not be written.
        """
        error = None
        try:
            self._writer.wait()
        except CheckpointNotWrittenError as failed:
            error = failed
        self._raise_on_all(error)

    def close(self) -> None:
        """End the thread."""
        self._writer.close()

    def _raise_on_all(self, error: CheckpointNotWrittenError | None) -> None:
        """Raise rank 0's error on every rank, so that no rank waits for one that has ended."""
        if self.context.world_size > 1:
            shared = [str(error) if error else ""]
            dist.broadcast_object_list(shared, src=0)
            error = error or (CheckpointNotWrittenError(shared[0]) if shared[0] else None)
        if error:
            raise error
