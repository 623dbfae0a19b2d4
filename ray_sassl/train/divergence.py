"""Finds the step whose loss is not finite, and its samples, without waiting for the device at every step."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ray_sassl.files import storage
from ray_sassl.nn.gather import gather_objects
from ray_sassl.process.ending import after
from ray_sassl.process.errors import UsageError
from ray_sassl.train.checkpoint_folder import whole_checkpoints
from ray_sassl.train.context import Context
from ray_sassl.types import Arrays

DIVERGED = "diverged.json"
_NAMED = 20
_ADVICE = "Lower optim.base_lr, lengthen optim.warmup_epochs, set train.clip_norm, or use train.precision=float32."


class DivergedError(UsageError):
    """The loss or a weight is no longer finite."""


@dataclass(frozen=True)
class BadStep:
    """The first step whose loss was not a finite number.

    Attributes:
        step: Counted from 1.
        loss: `nan` or `inf`.
        epochs, sample_ids: The rows of the step's global batch.
    """

    step: int
    loss: str
    epochs: list[int]
    sample_ids: list[int]


class DivergenceWatch:
    """Remembers the first bad step. Losses stay on the device until they are asked for.

    Args:
        device: Where the losses are.
        every_step: Whether to look at every step, which costs nothing on a CPU.
    """

    def __init__(self, device: torch.device, every_step: bool) -> None:
        self._every_step = every_step
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._recent: deque[tuple[int, Sequence[Arrays]]] = deque()

    def note(self, step: int, losses: Sequence[Tensor], parts: Sequence[Arrays]) -> None:
        """Record a step's losses and the `epoch` and `sample_id` of the rows that they were computed from."""
        loss = torch.stack([loss.detach().float() for loss in losses]).mean()
        is_first = (self._first < 0) & ~loss.isfinite()
        self._loss = torch.where(is_first, loss, self._loss)
        self._first = torch.where(is_first, step, self._first)
        self._recent.append((step, parts))

    def has_seen_one(self, look: bool) -> bool:
        """Whether this rank is known to have had a bad step; waits for the device if `look` is set."""
        if not (look or self._every_step):
            return False
        if int(self._first) >= 0:
            return True
        self._recent = deque(list(self._recent)[-1:])
        return False

    def bad_step(self) -> BadStep:
        """The first bad step over all ranks, or else the last step, with its whole global batch; every rank must call it."""
        mine = (int(self._first) if int(self._first) >= 0 else None, float(self._loss))
        known = [first for first in gather_objects(mine) if first[0] is not None]
        step, loss = min(known, key=lambda first: first[0]) if known else (self._recent[-1][0], math.nan)
        parts = next((parts for number, parts in self._recent if number == step), [])
        rows = [(int(e), int(i)) for part in parts for e, i in zip(part["epoch"], part["sample_id"], strict=True)]
        everyone = [row for rank in gather_objects(rows) for row in rank]
        return BadStep(step, str(loss), [epoch for epoch, _ in everyone], [sample for _, sample in everyone])


def end_diverged(bad: BadStep, run_dir: str, context: Context, lr: float, what: str = "") -> DivergedError:
    """Write `diverged.json` on rank 0, and return the error that says what happened.

    Args:
        lr: Learning rate of the bad step.
        what: What is not finite, in words, if it is not the loss.
    """
    checkpoints = whole_checkpoints(run_dir)
    last = checkpoints[-1][1] if checkpoints else None
    named = ", ".join(map(str, bad.sample_ids[:_NAMED]))
    rest = f" and {len(bad.sample_ids) - _NAMED:,} more (all in {DIVERGED})" if len(bad.sample_ids) > _NAMED else ""
    error = DivergedError(
        f"{what or f'the loss is {bad.loss}'} at step {bad.step} (learning rate {lr:.3g}), on samples {named}{rest} of epoch "
        f"{' and '.join(map(str, sorted(set(bad.epochs))))}. "
        f"{f'The last good checkpoint is {last}' if last else 'No checkpoint was written before it'}. {_ADVICE}"
    )
    if context.rank == 0:
        content = json.dumps({**asdict(bad), "checkpoint": last}, indent=2)
        after(error, f"write {DIVERGED}", lambda: storage.write_text(storage.join(run_dir, DIVERGED), content))
    return error
