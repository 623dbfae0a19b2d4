"""Random crops of labeled images, for training classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from ray_sassl.data import Rows
from ray_sassl.data.ahead import ahead
from ray_sassl.data.index import Index
from ray_sassl.data.plan import default_window_bytes, plan_of
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import read_groups, read_runs
from ray_sassl.pipeline import OnBad, crop_rows
from ray_sassl.views.recipes import ViewConfig

_CROPS_AT_ONCE, _PORTION_CROPS = 64, 1024

_KEPT_ENCODED_BYTES, _MOST_PORTION_BYTES = 2 * 2**30, 2**30

_TRAINING_CROP = ViewConfig(interpolation="bilinear")
"""The usual crop of supervised training on ImageNet (torchvision's defaults): 8 to 100 % of the area; only crop and flip are used."""


@dataclass(frozen=True)
class CropPortion:
    """Consecutive train images of an epoch, which one process works on.

    Attributes:
        epoch: Counted from 0.
        runs: First row and length of the runs to read, which hold them; None if all rows are kept in memory.
        sample_id: (n,) int64.
    """

    epoch: int
    runs: tuple[np.ndarray, np.ndarray] | None
    sample_id: np.ndarray


class TrainingCrops:
    """Random crops of some rows, mirrored half of the time, for training a classifier; each epoch has its own order.

    If the encoded rows take less than 2 GiB, each process that makes crops reads them once and all are shuffled together. Otherwise they
    are read again in every epoch and shuffled in windows as those of a run. An image's crop depends only on the seed, its id and the
    epoch.

    Args:
        sample_id: (N,) int64, the rows.
    """

    def __init__(self, index: Index, sample_id: np.ndarray, size_px: int, batch_size: int, seed: int) -> None:
        self._index, self._size_px, self._seed = index, size_px, seed
        self._wanted = np.zeros(index.num_rows, bool)
        self._wanted[sample_id] = True
        self._keeps = bool(index.num_bytes * self._wanted.mean() <= _KEPT_ENCODED_BYTES)
        data = index.config.model_copy(update={"block_rows": batch_size})
        if self._keeps:
            data = data.model_copy(update={"shuffle_window": index.num_rows})
        elif data.shuffle_gb is None and data.shuffle_window is None:
            data = data.model_copy(update={"shuffle_gb": min(default_window_bytes(index, batch_size), _MOST_PORTION_BYTES) / 1e9})
        self._plan = plan_of(index, data, seed)

    @cached_property
    def _kept(self) -> _KeptRows:
        return _KeptRows(self._index, self._wanted)

    def portions(self, epoch: int) -> Iterator[CropPortion]:
        """The epoch's images in order; nothing is read."""
        for window in self._plan.each_window(epoch):
            ids = np.concatenate([block.sample_id for block in self._plan.blocks(window)])
            ids = ids[self._wanted[ids]]
            if self._keeps:
                yield from (CropPortion(epoch, None, ids[start : start + _PORTION_CROPS]) for start in range(0, len(ids), _PORTION_CROPS))
            elif len(ids):
                first, length = self._plan.piece_runs(window.pieces)
                has_some = np.array([self._wanted[start : start + rows].any() for start, rows in zip(first, length, strict=True)])
                yield CropPortion(epoch, (first[has_some], length[has_some]), ids)

    def pieces(self, portions: Iterable[CropPortion], num_threads: int, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Crops (n, size_px, size_px, 3) uint8 and labels (n,), a few at a time and in order; rows that cannot be decoded are left out."""
        with ThreadPoolExecutor(num_threads) as pool:
            for future in ahead(partial(pool.submit, self._piece), self._rows(portions), 2 * num_threads):
                piece, bad = future.result()
                if bad:
                    on_bad(bad)
                yield piece

    def _rows(self, portions: Iterable[CropPortion]) -> Iterator[tuple[int, Rows]]:
        for portion in portions:
            take = self._kept.take if portion.runs is None else read_runs(self._index, *portion.runs).take
            for start in range(0, len(portion.sample_id), _CROPS_AT_ONCE):
                yield portion.epoch, take(portion.sample_id[start : start + _CROPS_AT_ONCE])

    def _piece(self, numbered: tuple[int, Rows]) -> tuple[tuple[np.ndarray, np.ndarray], list[BadRow]]:
        epoch, rows = numbered
        bad: list[BadRow] = []
        view = [(_TRAINING_CROP, self._size_px)]
        (crops,), good = crop_rows(rows, view, self._seed, epoch, self._index.config.max_pixels, bad.extend)
        return (crops, rows.label[good]), bad


def training_crops(
    index: Index, sample_id: np.ndarray, size_px: int, epochs: int, batch_size: int, seed: int, on_bad: OnBad, *, num_threads: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The crops of `TrainingCrops` in batches (B, size_px, size_px, 3) uint8 with labels (B,); the last of an epoch may be smaller."""
    crops = TrainingCrops(index, sample_id, size_px, batch_size, seed)
    for epoch in range(epochs):
        yield from labeled_batches(crops.pieces(crops.portions(epoch), num_threads, on_bad), batch_size)


def labeled_batches(pieces: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Arrays (n, ...) and labels (n,) put together into batches of `batch_size`; the last one may be smaller."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for piece in pieces:
        held.append(piece)
        while sum(len(labels) for _, labels in held) >= batch_size:
            values, labels = (np.concatenate(column) for column in zip(*held, strict=True))
            yield values[:batch_size], labels[:batch_size]
            held = [(values[batch_size:], labels[batch_size:])]
    if sum(len(labels) for _, labels in held):
        values, labels = (np.concatenate(column) for column in zip(*held, strict=True))
        yield values, labels


class _KeptRows:
    """The wanted rows of a data set, read once; row groups without any are not read."""

    def __init__(self, index: Index, wanted: np.ndarray) -> None:
        parts = []
        for group in np.flatnonzero(index.group_rows > 0).tolist():
            ids = index.sample_ids(group)
            if wanted[ids].any():
                parts.append(read_groups(index, [group]).take(ids[wanted[ids]]))
        self._rows = Rows.joined(parts)
        self._place = np.full(index.num_rows, -1)
        self._place[self._rows.sample_id] = np.arange(len(self._rows))

    def take(self, sample_id: np.ndarray) -> Rows:
        return self._rows.at(self._place[sample_id])
