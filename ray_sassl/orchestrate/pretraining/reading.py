"""The first stages of the stream, whose processes never import torch: read, decode and crop, and views where nothing is stylized."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import ray
from ray.actor import ActorHandle

from ray_sassl.data.plan import Window
from ray_sassl.data.quarantine import BadRow, TooManyBadRowsError
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.runtime.metrics import count_images
from ray_sassl.pipeline import CropBlock, ViewSource, crop_blocks, finish_block
from ray_sassl.types import Arrays, view_name, view_names

WHOLE = -1
"""In the place of a block's number: all blocks of the window."""


class BadRowsReporter:
    """Hands bad rows to the run's control actor, and stops the work where there are too many."""

    def __init__(self, control: ActorHandle) -> None:
        self._control = control

    def __call__(self, rows: list[BadRow]) -> None:
        if fatal := ray.get(self._control.add_bad.remote(rows)):
            raise TooManyBadRowsError(fatal)


class ReadStage:
    """What a task does with its share of the plan.

    Args:
        shares: One (n, 3) int32 array a task: the windows' epochs and numbers, and the number of the block that is meant, or `WHOLE`.
        seen: Samples to leave out.
        on_bad: Is told of rows that cannot be used.
        run: The run's name, for its metrics.
    """

    def __init__(self, source: ViewSource, shares: list[np.ndarray], seen: SeenIds, on_bad: BadRowsReporter, run: str) -> None:
        self.source, self.shares, self.seen, self.on_bad, self.run = source, shares, seen, on_bad, run

    def blocks(self, batch: dict[str, np.ndarray]) -> Iterator[CropBlock]:
        """The blocks of the tasks with these numbers in the plan."""
        for row in batch["id"].tolist():
            for epoch, number, block_number in self.shares[row].tolist():
                only = None if block_number == WHOLE else block_number
                for block in crop_blocks(self.source, _windows_of(self.source, epoch)[number], self.seen, self.on_bad, only):
                    count_images(self.run, "decode", len(block.sample_id))
                    yield block

    def crops(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        """Each plan's block as one row."""
        for block in self.blocks(batch):
            yield row_of_block(block)

    def views(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        """Each plan's block as rows of finished views."""
        for block in self.blocks(batch):
            yield finish_block(self.source, block, None)


@lru_cache(maxsize=8)
def _windows_of(source: ViewSource, epoch: int) -> list[Window]:
    return source.plan.windows(epoch)


def row_of_block(block: CropBlock) -> Arrays:
    """The block as a single row, which no re-batching can part."""
    views = {view_name(number): view[None] for number, view in enumerate(block.views)}
    return {**views, "sample_id": block.sample_id[None], "keep": block.keep[None], "epoch": np.array([block.epoch])}


def block_of_row(batch: dict[str, np.ndarray], row: int) -> CropBlock:
    """The inverse of `row_of_block` for one row of a batch."""
    views = [np.ascontiguousarray(batch[name][row]) for name in view_names(batch)]
    return CropBlock(views, np.asarray(batch["sample_id"][row]), int(batch["epoch"][row]), np.asarray(batch["keep"][row]))
