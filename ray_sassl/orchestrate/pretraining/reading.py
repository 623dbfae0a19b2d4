"""The first stages of the stream, whose processes never import torch: read, decode and crop, and whole views if nothing is stylized."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
from ray.actor import ActorHandle

from ray_sassl.data.quarantine import BadRow, TooManyBadRowsError
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.feeding import WHOLE, piece_of_row
from ray_sassl.orchestrate.runtime.metrics import count_images
from ray_sassl.pipeline import CropBlock, ViewSource, crop_blocks, finish_block
from ray_sassl.types import Arrays, view_name, view_names


class BadRowsReporter:
    """Reports bad rows to the run's control actor, and stops the work if there are too many."""

    def __init__(self, control: ActorHandle) -> None:
        self._control = control

    def __call__(self, rows: list[BadRow]) -> None:
        if fatal := ray.get(self._control.add_bad.remote(rows)):
            raise TooManyBadRowsError(fatal)


class ReadStage:
    """The work of a task on its piece of the plan.

    Args:
        seen: Samples to leave out.
        on_bad: Called with rows that cannot be used.
        run: The run's name, for its metrics.
    """

    def __init__(self, source: ViewSource, seen: SeenIds, on_bad: BadRowsReporter, run: str) -> None:
        self.source, self.seen, self.on_bad, self.run = source, seen, on_bad, run

    def blocks(self, batch: dict[str, np.ndarray]) -> Iterator[CropBlock]:
        """The blocks of the pieces in these rows of the source."""
        for row in range(len(batch["epoch"])):
            if (piece := piece_of_row(batch, row, self.source.index)) is None:
                continue
            window, block_number = piece
            only = None if block_number == WHOLE else block_number
            for block in crop_blocks(self.source, window, self.seen, self.on_bad, only):
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


def row_of_block(block: CropBlock) -> Arrays:
    """The block as a single row, which re-batching cannot split."""
    views = {view_name(number): view[None] for number, view in enumerate(block.views)}
    return {**views, "sample_id": block.sample_id[None], "keep": block.keep[None], "epoch": np.array([block.epoch])}


def block_of_row(batch: dict[str, np.ndarray], row: int) -> CropBlock:
    """The inverse of `row_of_block` for one row of a batch."""
    views = [np.ascontiguousarray(batch[name][row]) for name in view_names(batch)]
    return CropBlock(views, np.asarray(batch["sample_id"][row]), int(batch["epoch"][row]), np.asarray(batch["keep"][row]))
