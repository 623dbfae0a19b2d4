"""From shards to batches, as plain functions: what Ray spreads over a cluster, and what one process runs by itself.

    window ─► read ─► decode ─► crop (each view) ─► stylize ─► colour ─► rows that this run has not seen

Up to the crops nothing here imports torch, so that the workers which read and decode stay light. A plan's block stays one piece up to
the end: the partners of in-batch style transfer are its rows, whatever batch they end up in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image

from ray_sassl.data import NO_LABEL, DataConfig, Rows
from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index, read_groups
from ray_sassl.data.plan import Block, Plan, Window
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.seen import SeenIds
from ray_sassl.types import Arrays, view_name
from ray_sassl.views import opencv
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import ViewParams, draw
from ray_sassl.views.recipes import ViewConfig, ViewsConfig

OnBad = Callable[[list[BadRow]], object]
"""Told of the rows that could not be read or decoded; raises where there are too many."""

Restyle = Callable[[list[np.ndarray], np.ndarray, int], list[np.ndarray]]
"""Style augmentation of one block: views (each (B, H, W, 3) uint8), sample ids (B,) and the epoch in, views out."""

_WHOLE_IMAGE_PX = 64
_BATCHES_AHEAD = 1
_SPREAD_GROUPS = 64
_CROPS_AT_ONCE, _PORTION_CROPS = 64, 1024
_KEPT_ENCODED_BYTES = 2 * 2**30
_TRAINING_CROP = ViewConfig(interpolation="bilinear")
"""The usual crop of supervised training on ImageNet (torchvision's defaults): 8 to 100 % of the area; only crop and flip are used."""


@dataclass(frozen=True)
class ViewSource:
    """Which views of which data, in which order; small and picklable, with the index by its path.

    Attributes:
        index_path: Where the index is saved.
        data, views, seed: As in the experiment's config.
        index_mtime_ns: When it was saved, so that a process which has loaded an older index from the same path does not use that.
    """

    index_path: str
    data: DataConfig
    views: ViewsConfig
    seed: int
    index_mtime_ns: int = 0

    @property
    def index(self) -> Index:
        return _load_index(self.index_path, self.index_mtime_ns)

    @property
    def plan(self) -> Plan:
        return Plan(self.index, self.seed, self.data.shuffle_window, self.data.block_rows)


@dataclass(frozen=True)
class CropBlock:
    """A plan's block, decoded and cropped.

    Attributes:
        views: One (B, H, W, 3) uint8 array a view, each of its own size.
        sample_id: (B,) int64; rows that could not be decoded are gone.
        epoch: The epoch.
        keep: (B,) bool; False for rows that the run has seen before it was resumed, which are here as style partners only.
    """

    views: list[np.ndarray]
    sample_id: np.ndarray
    epoch: int
    keep: np.ndarray


@lru_cache(maxsize=4)
def _load_index(path: str, mtime_ns: int) -> Index:
    return Index.load(path)


def crop_blocks(source: ViewSource, window: Window, seen: SeenIds, on_bad: OnBad, only: int | None = None) -> Iterator[CropBlock]:
    """The window's blocks, or the one with the number `only`, decoded and cropped; blocks that the run has seen whole are left out."""
    blocks = [block for block in source.plan.blocks(window) if only in (None, block.number)]
    blocks = [block for block in blocks if seen.unseen(window.epoch, block.sample_id).any()]
    if not blocks:
        return
    rows = read_groups(source.index, window.groups)
    for block in blocks:
        cropped = _crop_block(source, block, rows.take(block.sample_id), seen, on_bad)
        if len(cropped.sample_id):
            yield cropped


def _crop_block(source: ViewSource, block: Block, rows: Rows, seen: SeenIds, on_bad: OnBad) -> CropBlock:
    images, good = decode_images(rows, source.data.max_pixels, on_bad)
    sample_id = block.sample_id[good]
    sizes = np.array([image.size for image in images], np.int64).reshape(-1, 2)
    views = []
    for number, (view, size_px) in enumerate(zip(source.views.views, source.views.sizes_px, strict=True)):
        params = draw(view, sizes, sample_id, block.epoch, source.seed, number)
        views.append(crop(images, params, size_px, view.interpolation))
    return CropBlock(views, sample_id, block.epoch, seen.unseen(block.epoch, sample_id))


def decode_images(rows: Rows, max_pixels: int, on_bad: OnBad) -> tuple[list[Image.Image], np.ndarray]:
    """The images that can be decoded, and a (n,) bool mask of which these are; the others are handed to `on_bad`."""
    decoded = decode_rows(rows, max_pixels)
    good = np.array([not isinstance(image, BadRow) for image in decoded], bool)
    if bad := [row for row in decoded if isinstance(row, BadRow)]:
        on_bad(bad)
    return [image for image in decoded if not isinstance(image, BadRow)], good


def finish_block(source: ViewSource, block: CropBlock, restyle: Restyle | None, device_type: str = "cpu") -> Arrays:
    """The block's views, stylized and with their colours changed, without the rows that are there as partners only."""
    views = restyle(block.views, block.sample_id, block.epoch) if restyle else block.views
    sample_id = block.sample_id[block.keep]
    if not block.keep.all():
        views = [view[block.keep] for view in views]
    # The colours' draws do not depend on the image's size, so any size will do here.
    sizes = np.full((len(sample_id), 2), source.views.size_px, np.int64)
    arrays: Arrays = {"sample_id": sample_id, "epoch": np.full(len(sample_id), block.epoch, np.int64)}
    for number, (config, view) in enumerate(zip(source.views.views, views, strict=True)):
        params = draw(config, sizes, sample_id, block.epoch, source.seed, number)
        if source.views.backend_on(device_type) == "opencv":
            arrays[view_name(number)] = opencv.colour(view, params)
        else:
            arrays[view_name(number)] = _colour_in_torch(view, params, device_type)
    return arrays


def _colour_in_torch(view: np.ndarray, params: ViewParams, device_type: str) -> np.ndarray:
    import torch  # which the light workers go without

    from ray_sassl.style.augment import to_float, to_uint8
    from ray_sassl.views import ops

    with torch.inference_mode():
        return to_uint8(ops.colour(to_float(view, torch.device(device_type)), params))


def windows(source: ViewSource, epochs: float, seen: SeenIds) -> Iterator[Window]:
    """The windows of all epochs in order, as one stream, without those that the run has seen whole. A fraction of an epoch counts whole."""
    plan = source.plan
    for epoch in range(int(np.ceil(epochs))):
        if seen.count(epoch) == source.index.num_rows:
            continue
        for window in plan.windows(epoch):
            if not seen.is_touched(epoch) or seen.unseen(epoch, ids_of(source.index, window)).any():
                yield window


def local_batches(
    source: ViewSource,
    *,
    epochs: float,
    batch_size: int,
    on_bad: OnBad,
    restyle: Restyle | None = None,
    seen: SeenIds | None = None,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
) -> Iterator[Arrays]:
    """The whole flow in this process: what `rank` of `world_size` takes of each global batch, in `accumulate` parts.

    Args:
        batch_size: Rows of one part. Every step's global batch, and each of its parts, is the same rows, however many workers share it.
    """
    seen = seen or SeenIds(source.index.num_rows)
    blocks = (
        finish_block(source, block, restyle)
        for window in windows(source, epochs, seen)
        for block in crop_blocks(source, window, seen, on_bad)
    )
    for batch in rebatch(blocks, accumulate * world_size * batch_size):
        for part in range(accumulate):
            first = (part * world_size + rank) * batch_size
            yield {name: array[first : first + batch_size] for name, array in batch.items()}


def rebatch(blocks: Iterable[Arrays], batch_size: int) -> Iterator[Arrays]:
    """Rows of the blocks, in order, in batches of exactly `batch_size`; what is left over at the end is dropped."""
    held: list[Arrays] = []
    num_held = 0
    for block in blocks:
        held.append(block)
        num_held += len(block["sample_id"])
        if num_held < batch_size:
            continue
        joined = held[0] if len(held) == 1 else {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        first = 0
        while num_held - first >= batch_size:
            yield {name: array[first : first + batch_size] for name, array in joined.items()}
            first += batch_size
        held, num_held = [{name: array[first:] for name, array in joined.items()}], num_held - first


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch as encoders are evaluated on.

    Attributes:
        images: (B, size_px, size_px, 3) uint8.
        labels: (B,) int64.
        sample_id: (B,) int64.
    """

    images: np.ndarray
    labels: np.ndarray
    sample_id: np.ndarray


def labelled_images(
    config: DataConfig, index: Index, size_px: int, on_bad: OnBad, *, limit: int | None = None, batch_size: int = 256, num_threads: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (B, size_px, size_px, 3) uint8 as encoders are evaluated on, with their labels (B,); rows without a label are left out.

    Args:
        limit: At most so many rows: some of each of 64 row groups that are spread over the data set, or of more where those are small.
    """
    groups, rows_per_group = _spread(index, limit)

    def chosen(group: int) -> Rows | None:
        rows = read_groups(index, [group])
        labelled = rows.sample_id[rows.label != NO_LABEL]
        if not len(labelled):
            return None
        return rows.take(labelled[np.unique(np.linspace(0, len(labelled) - 1, min(rows_per_group, len(labelled))).round().astype(int))])

    for batch in _evaluation_batches((chosen(group) for group in groups), config.max_pixels, size_px, on_bad, batch_size, num_threads):
        yield batch.images, batch.labels


def evaluation_images(
    index: Index, groups: Sequence[int], size_px: int, on_bad: OnBad, *, batch_size: int = 64, num_threads: int = 1
) -> Iterator[EvaluationBatch]:
    """The images of these row groups as encoders are evaluated on; rows without a label are left out."""
    rows = read_groups(index, groups)
    labelled = rows.take(rows.sample_id[rows.label != NO_LABEL]) if (rows.label != NO_LABEL).any() else None
    return _evaluation_batches([labelled], index.config.max_pixels, size_px, on_bad, batch_size, num_threads)


def portions(index: Index, num_rows: int) -> list[list[int]]:
    """The row groups that are not empty, in order, in lists of about `num_rows` rows."""
    groups = np.flatnonzero(index.group_rows > 0)
    number = (np.cumsum(index.group_rows[groups]) - 1) // num_rows
    return [portion.tolist() for portion in np.split(groups, np.flatnonzero(np.diff(number)) + 1) if len(portion)]


def _evaluation_batches(
    parts: Iterable[Rows | None], max_pixels: int, size_px: int, on_bad: OnBad, batch_size: int, num_threads: int
) -> Iterator[EvaluationBatch]:
    """The parts' images in batches; while one batch is looked at, the threads decode the next."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[list[Future[tuple[EvaluationBatch, list[BadRow]]]]] = deque()

        def finished() -> EvaluationBatch:
            done = [future.result() for future in waiting.popleft()]
            if bad := [row for _, rows in done for row in rows]:
                on_bad(bad)
            pieces = [piece for piece, _ in done]
            columns = ([getattr(piece, name) for piece in pieces] for name in ("images", "labels", "sample_id"))
            return EvaluationBatch(*(np.concatenate(column) if len(column) > 1 else column[0] for column in columns))

        for rows in parts:
            for start in range(0, len(rows) if rows else 0, batch_size):
                assert rows is not None
                pieces = [ids for ids in np.array_split(rows.sample_id[start : start + batch_size], num_threads) if len(ids)]
                waiting.append([pool.submit(_evaluation_piece, rows.take(ids), max_pixels, size_px) for ids in pieces])
                if len(waiting) > _BATCHES_AHEAD:
                    yield finished()
        while waiting:
            yield finished()


def _evaluation_piece(rows: Rows, max_pixels: int, size_px: int) -> tuple[EvaluationBatch, list[BadRow]]:
    bad: list[BadRow] = []
    images, good = decode_images(rows, max_pixels, bad.extend)
    pixels = np.empty((len(images), size_px, size_px, 3), np.uint8)
    for place, image in enumerate(images):
        pixels[place] = np.asarray(evaluation_view(image, size_px))
    return EvaluationBatch(pixels, rows.label[good], rows.sample_id[good]), bad


@dataclass(frozen=True)
class CropPortion:
    """Train images that stand next to each other in the order of an epoch, to be worked on in one place.

    Attributes:
        epoch: Counted from 0.
        groups: The row groups that hold them, to be read; None where all rows are kept.
        sample_id: (n,) int64.
    """

    epoch: int
    groups: tuple[int, ...] | None
    sample_id: np.ndarray


class TrainingCrops:
    """What a classifier is trained on: crops at random, mirrored half of the time, of some rows, epoch by epoch in an order of its own.

    Where the encoded rows take less than 2 GiB they are read once by each process that makes crops, and shuffled all together; more are read anew in
    every epoch, and shuffled in windows of `shuffle_window` rows. An image's crop follows from the seed, its id and the epoch alone.

    Args:
        sample_id: (N,) int64, the rows.
    """

    def __init__(self, index: Index, sample_id: np.ndarray, size_px: int, batch_size: int, seed: int) -> None:
        self._index, self._size_px, self._seed = index, size_px, seed
        self._wanted = np.zeros(index.num_rows, bool)
        self._wanted[sample_id] = True
        self._keeps = bool(index.num_bytes * self._wanted.mean() <= _KEPT_ENCODED_BYTES)
        self._plan = Plan(index, seed, index.num_rows if self._keeps else index.config.shuffle_window, batch_size)

    @cached_property
    def _kept(self) -> _KeptRows:
        return _KeptRows(self._index, self._wanted)

    def portions(self, epoch: int) -> Iterator[CropPortion]:
        """The epoch's images in order; nothing is read."""
        for window in self._plan.windows(epoch):
            ids = np.concatenate([block.sample_id for block in self._plan.blocks(window)])
            ids = ids[self._wanted[ids]]
            if self._keeps:
                yield from (CropPortion(epoch, None, ids[start : start + _PORTION_CROPS]) for start in range(0, len(ids), _PORTION_CROPS))
            elif len(ids):
                groups = tuple(group for group in window.groups if self._wanted[self._index.sample_ids(group)].any())
                yield CropPortion(epoch, groups, ids)

    def pieces(self, portions: Iterable[CropPortion], num_threads: int, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Crops (n, size_px, size_px, 3) uint8 and labels (n,), a few at a time and in order; rows that cannot be decoded are left out."""
        with ThreadPoolExecutor(num_threads) as pool:
            for piece, bad in _ahead(pool, self._piece, self._rows(portions), 2 * num_threads):
                if bad:
                    on_bad(bad)
                yield piece

    def _rows(self, portions: Iterable[CropPortion]) -> Iterator[tuple[int, Rows]]:
        for portion in portions:
            take = self._kept.take if portion.groups is None else read_groups(self._index, portion.groups).take
            for start in range(0, len(portion.sample_id), _CROPS_AT_ONCE):
                yield portion.epoch, take(portion.sample_id[start : start + _CROPS_AT_ONCE])

    def _piece(self, numbered: tuple[int, Rows]) -> tuple[tuple[np.ndarray, np.ndarray], list[BadRow]]:
        epoch, rows = numbered
        bad: list[BadRow] = []
        images, good = decode_images(rows, self._index.config.max_pixels, bad.extend)
        sizes = np.array([image.size for image in images], np.int64).reshape(-1, 2)
        params = draw(_TRAINING_CROP, sizes, rows.sample_id[good], epoch, self._seed, 0)
        return (crop(images, params, self._size_px, _TRAINING_CROP.interpolation), rows.label[good]), bad


def training_crops(
    index: Index, sample_id: np.ndarray, size_px: int, epochs: int, batch_size: int, seed: int, on_bad: OnBad, *, num_threads: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The crops of `TrainingCrops` in batches (B, size_px, size_px, 3) uint8 with labels (B,); the last of an epoch may be smaller."""
    crops = TrainingCrops(index, sample_id, size_px, batch_size, seed)
    for epoch in range(epochs):
        yield from labelled_batches(crops.pieces(crops.portions(epoch), num_threads, on_bad), batch_size)


def labelled_batches(pieces: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Arrays (n, ...) and labels (n,) put together into batches of `batch_size`; what is left over is a smaller one."""
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


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def _ahead(pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item], num: int) -> Iterator[_Result]:
    """The results in the items' order; the pool works on up to `num` items ahead of the one that is asked for."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > num:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def evaluation_view(image: Image.Image, size_px: int) -> Image.Image:
    """The image as encoders are evaluated on: resized (bilinear) and, above 64 px, cropped at the centre to 7/8 of the shorter side."""
    if size_px <= _WHOLE_IMAGE_PX:
        return image if image.size == (size_px, size_px) else image.resize((size_px, size_px), Image.Resampling.BILINEAR)
    scale = round(size_px * 8 / 7) / min(image.size)
    width, height = (max(size_px, round(side * scale)) for side in image.size)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size_px, top + size_px))


def _spread(index: Index, limit: int | None) -> tuple[list[int], int]:
    """Which row groups to read, and how many rows to take of each."""
    every = np.flatnonzero(index.group_rows > 0)
    if limit is None or limit >= index.num_rows:
        return every.tolist(), int(index.group_rows.max())
    num = min(len(every), max(_SPREAD_GROUPS, math.ceil(limit * len(every) / index.num_rows)))
    groups = every[np.unique(np.linspace(0, len(every) - 1, num).round().astype(int))]
    return groups.tolist(), max(1, limit // len(groups))


def ids_of(index: Index, window: Window) -> np.ndarray:
    """(n,) int64: the ids of the window's rows, before they are shuffled."""
    return np.concatenate([index.sample_ids(group) for group in window.groups])


def without(seen: SeenIds, bad: Iterable[BadRow], epochs: Iterable[int]) -> SeenIds:
    """A copy of the record in which rows known to be bad count as seen in the epochs given, so that a resumed run does not try them again."""
    copy = SeenIds.from_state_dict(seen.state_dict())
    ids = np.array([row.sample_id for row in bad if row.sample_id >= 0], np.int64)
    for epoch in epochs:
        if seen.is_touched(epoch) and len(ids):
            copy.add(np.full(len(ids), epoch, np.int64), ids)
    return copy
