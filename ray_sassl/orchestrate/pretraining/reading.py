"""The first stages of the stream, whose processes never import torch: read, decode and crop, and whole views if nothing is stylized."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from ray_sassl.data.quarantine import BadRow, TooManyBadRowsError
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.exchange import part_reader
from ray_sassl.orchestrate.pretraining.feeding import piece_of_row
from ray_sassl.orchestrate.runtime.metrics import count_images
from ray_sassl.pipeline import CropBlock, ViewSource, crop_blocks, finish_block
from ray_sassl.process.stages import Spent, StageTimes, since
from ray_sassl.types import Arrays, view_name, view_names


class BadRowsReporter:
    """Reports bad rows to the run's control actor, and stops the work if there are too many."""

    def __init__(self, control: ActorHandle) -> None:
        self.control = control

    def __call__(self, rows: list[BadRow]) -> None:
        if fatal := ray.get(self.control.add_bad.remote(rows)):
            raise TooManyBadRowsError(fatal)


_TELL_EVERY_S = 1.0


@lru_cache(maxsize=1)
def stage_times(control: ActorHandle) -> StageTimes:
    """What this process counts the time of its stages in; a thread tells the control actor about it until the actor ends."""
    times, where = StageTimes(), f"Process {os.getpid()} of the stream on {ray.util.get_node_ip_address()}"

    def tell() -> None:
        told: Spent = {}
        while True:
            time.sleep(_TELL_EVERY_S)
            total, standing = times.total(), times.standing()
            if total == told and standing is None:
                continue
            try:
                ray.get(control.add_spent.remote(since(told, total), standing and replace(standing, where=where)))
            except RayError:
                return
            told = total

    threading.Thread(target=tell, name="stage times", daemon=True).start()
    return times


class ReadStage:
    """The work of a task on its piece of the plan.

    Args:
        seen: Samples to leave out.
        on_bad: Called with rows that cannot be used.
        run: The run's name, for its metrics.
        exchange: The `Exchange` of the rows of large windows, if there are any.
    """

    def __init__(self, source: ViewSource, seen: SeenIds, on_bad: BadRowsReporter, run: str, exchange: ActorHandle | None = None) -> None:
        self.source, self.seen, self.on_bad, self.run, self.exchange = source, seen, on_bad, run, exchange

    def blocks(self, batch: dict[str, np.ndarray]) -> Iterator[CropBlock]:
        """The blocks of the pieces in these rows of the source."""
        times = stage_times(self.on_bad.control)
        for row in range(len(batch["epoch"])):
            if (piece := piece_of_row(batch, row)) is None:
                continue
            window, wanted, rows = piece
            read = part_reader(self.exchange, self.source, window, wanted)
            for block in crop_blocks(self.source, window, self.seen, self.on_bad, wanted, read, times):
                if rows is not None:
                    ids = self.source.plan.blocks(window)[wanted.start].sample_id[rows.start : rows.stop]
                    block = replace(block, keep=block.keep & np.isin(block.sample_id, ids))
                    if not block.keep.any():
                        continue
                count_images(self.run, "decode", len(block.sample_id))
                yield block

    def crops(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        """Each plan's block as one row."""
        for block in self.blocks(batch):
            yield row_of_block(block)

    def views(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        """Each plan's block as rows of finished views."""
        for block in self.blocks(batch):
            yield finish_block(self.source, block, None, times=stage_times(self.on_bad.control))


def row_of_block(block: CropBlock) -> Arrays:
    """The block as a single row, which re-batching cannot split."""
    views = {view_name(number): view[None] for number, view in enumerate(block.views)}
    return {**views, "sample_id": block.sample_id[None], "keep": block.keep[None], "epoch": np.array([block.epoch])}


def block_of_row(batch: dict[str, np.ndarray], row: int) -> CropBlock:
    """The inverse of `row_of_block` for one row of a batch."""
    views = [np.ascontiguousarray(batch[name][row]) for name in view_names(batch)]
    return CropBlock(views, np.asarray(batch["sample_id"][row]), int(batch["epoch"][row]), np.asarray(batch["keep"][row]))
