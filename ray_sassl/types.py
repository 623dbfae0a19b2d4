"""What passes between the parts, and the legend of shapes.

Shapes: `B` images of a batch on this worker, `H x W` their size in pixels, `F` width of the backbone's features, `D` width of the
projector's embeddings, `N` rows of the data set. This module imports neither torch nor Ray, so the light workers can use it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ray_sassl.process.secrets import redacted

if TYPE_CHECKING:
    from torch import Tensor

Arrays: TypeAlias = dict[str, np.ndarray]
"""A batch as it travels between processes: `view_0`, `view_1`, ... each (B, H, W, 3) uint8 RGB; `sample_id` (B,) int64; `epoch` (B,) int64.

`view_0` is left, `view_1` right, both of one size; `view_2` and on are the local crops of multi-crop, of another size.
"""

_VIEW = "view_"


TARGETS = "targets"
"""The name in `Arrays` of a frozen teacher's features (B, T) float16 of `view_1`, if there is a teacher."""


def view_name(number: int) -> str:
    """The name of view number `number` in `Arrays`."""
    return f"{_VIEW}{number}"


def view_names(arrays: dict[str, np.ndarray]) -> list[str]:
    """The names of the batch's views, in the order of their numbers."""
    return sorted((name for name in arrays if name.startswith(_VIEW)), key=lambda name: int(name.removeprefix(_VIEW)))


@dataclass(frozen=True)
class Batch:
    """A batch as a training step takes it, its tensors on the worker's device.

    Attributes:
        views: One (B, 3, H, W) uint8 tensor a view, in channels_last memory format.
        sample_id: (B,) int64, the row's number in the shard index.
        rows: `sample_id` and `epoch` as the stream gave them, in the host's memory; a batch may hold rows of two epochs.
        targets: (B, T) float16 features of a frozen teacher, for methods that take them.
    """

    views: list[Tensor]
    sample_id: Tensor
    rows: Arrays
    targets: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All that is on the device."""
        return [*self.views, self.sample_id, *([] if self.targets is None else [self.targets])]


@dataclass(frozen=True)
class Outcome:
    """How the training loop ended: "finished" or "interrupted", at which step, with which last checkpoint."""

    status: str
    step: int
    checkpoint: str


@dataclass(frozen=True)
class RunResult:
    """How a run ended; the same facts stand in its `summary.json`.

    Attributes:
        status: "finished", "interrupted" or "failed".
        step: Optimizer updates done.
        run_dir: Where the pictures, metrics and checkpoints are.
        checkpoint: The newest checkpoint's path, or None where the run ended before its first.
        metrics: The last logged value of each metric.
        reason: Why the run did not finish, or None.
        stopped_by: The signal that stopped it, such as "SIGTERM", or None.
        speed: What the last epoch's time went to, as `train.speed.Speed` says; None where no epoch was completed.
    """

    status: str
    step: int
    run_dir: str
    checkpoint: str | None
    metrics: dict[str, float]
    reason: str | None = None
    stopped_by: str | None = None
    speed: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", self.reason and redacted(self.reason))
