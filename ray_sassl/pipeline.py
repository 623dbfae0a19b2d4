"""From shards to batches, as plain functions, which Ray runs on a cluster or one process runs alone.

    window ─► read ─► decode ─► crop (each view) ─► stylize ─► color ─► rows that this run has not seen

Nothing up to the crops imports torch, so that the workers which read and decode stay light. A block of the plan is never split before it is
finished: the partners of in-batch style transfer are rows of the same block, whichever batch they end up in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from PIL import Image

from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.ahead import ahead
from ray_sassl.data.decode import DecodeError, OpenImage, decode_rows, open_rows
from ray_sassl.data.index import Index
from ray_sassl.data.plan import Block, Plan, Window, plan_of
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import read_runs
from ray_sassl.data.seen import SeenIds
from ray_sassl.process.stages import StageTimes, in_turn
from ray_sassl.types import TARGETS, Arrays, view_name
from ray_sassl.views import opencv
from ray_sassl.views.crop import Crops, Resizing
from ray_sassl.views.draw import ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import ViewConfig, ViewsConfig

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_AHEAD_BYTES = 2**30

OnBad = Callable[[list[BadRow]], object]
"""Called with the rows that could not be read or decoded; raises if there are too many."""


Teach = Callable[[np.ndarray], np.ndarray]
"""A frozen teacher: features (B, T) float16 of finished views (B, H, W, 3) uint8."""


class StylizeBlock(Protocol):
    """Style augmentation of one view of a whole block."""

    def __call__(self, images: np.ndarray, key: DrawKey, finish: Callable[[Tensor, np.ndarray], Tensor] | None = None) -> np.ndarray:
        """The view (B, H, W, 3) uint8, stylized.

        Args:
            images: (B, H, W, 3) uint8, the crops.
            key: The key of the view's draws.
            finish: Changes images (n, 3, H, W) float in [0, 1] of some rows (n,) after they were stylized and before they are rounded.
        """
        ...


@dataclass(frozen=True)
class ViewSource:
    """Which views of which data, in which order; small and picklable, because it has the index by its path.

    Attributes:
        index_path: Where the index is saved.
        data, views, seed: As in the experiment's config.
        index_mtime_ns: When the index was saved, so that a process does not use an older one that it loaded from the same path.
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
        data = self.data
        return _load_plan(self.index_path, self.index_mtime_ns, self.seed, data.block_rows, data.shuffle_gb, data.shuffle_window)


@dataclass(frozen=True)
class CropBlock:
    """A block of the plan, decoded and cropped.

    Attributes:
        views: One (B, H, W, 3) uint8 array per view, each of its own size.
        sample_id: (B,) int64, without the rows that could not be decoded.
        epoch: The epoch.
        keep: (B,) bool; False for rows that the run saw before it was resumed, which only serve as style partners.
    """

    views: list[np.ndarray]
    sample_id: np.ndarray
    epoch: int
    keep: np.ndarray


@lru_cache(maxsize=4)
def _load_index(path: str, mtime_ns: int) -> Index:
    return Index.load(path)


@lru_cache(maxsize=4)
def _load_plan(path: str, mtime_ns: int, seed: int, block_rows: int, shuffle_gb: float | None, shuffle_window: int | None) -> Plan:
    sizes = {"block_rows": block_rows, "shuffle_gb": shuffle_gb, "shuffle_window": shuffle_window}
    index = _load_index(path, mtime_ns)
    return plan_of(index, index.config.model_copy(update=sizes), seed)


def crop_blocks(
    source: ViewSource,
    window: Window,
    seen: SeenIds,
    on_bad: OnBad,
    only: range | None = None,
    read: Callable[[], Rows] | None = None,
    times: StageTimes | None = None,
) -> Iterator[CropBlock]:
    """The window's blocks, decoded and cropped, without blocks that the run has seen completely.

    Args:
        only: The numbers of the blocks that are wanted; by default all.
        read: Gives the rows of these blocks, or more; by default they are read from the data set.
    """
    times = times or StageTimes()
    for block, rows in _encoded_blocks(source, window, seen, times, only, read):
        cropped = _crop_block(source, block, rows, seen, on_bad, times)
        if len(cropped.sample_id):
            yield cropped


def _encoded_blocks(
    source: ViewSource,
    window: Window,
    seen: SeenIds,
    times: StageTimes,
    only: range | None = None,
    read: Callable[[], Rows] | None = None,
) -> Iterator[tuple[Block, Rows]]:
    """The blocks of `crop_blocks` with their encoded images."""
    blocks = [block for block in source.plan.blocks(window) if only is None or block.number in only]
    blocks = _unseen(blocks, seen)
    if not blocks:
        return
    with times.stage("read", sum(len(block.sample_id) for block in blocks)):
        rows = read() if read is not None else _read(source, window, blocks)
    for block in blocks:
        yield block, rows.take(block.sample_id)


def _unseen(blocks: Sequence[Block], seen: SeenIds) -> list[Block]:
    return [block for block in blocks if seen.unseen(block.epoch, block.sample_id).any()]


def encoded_windows(source: ViewSource, windows: Iterable[Window], seen: SeenIds, times: StageTimes) -> Iterator[tuple[Block, Rows]]:
    """The blocks of the windows with their encoded images, without those that the run has seen completely.

    From an object store the next window is read while the blocks of one are used, if two of them are at most `_AHEAD_BYTES`; only the time
    that is waited for it counts as reading.
    """
    if source.index.is_local or 2 * source.plan.mean_window_bytes > _AHEAD_BYTES:
        yield from (piece for window in windows for piece in _encoded_blocks(source, window, seen, times))
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="read ahead")

    def start(window: Window) -> tuple[list[Block], Future[Rows]]:
        blocks = _unseen(source.plan.blocks(window), seen)
        return blocks, pool.submit(_read, source, window, blocks)

    try:
        for blocks, reading in ahead(start, windows, 1):
            with times.stage("read", sum(len(block.sample_id) for block in blocks)):
                rows = reading.result()
            del reading
            for block in blocks:
                yield block, rows.take(block.sample_id)
            del rows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(source: ViewSource, window: Window, blocks: Sequence[Block]) -> Rows:
    """The rows of the window's blocks; of row groups that cannot be read in parts, all rows."""
    if source.index.format == "parquet":
        return read_runs(source.index, *source.plan.piece_runs(window.pieces))
    ids = source.plan.row_ids(window)
    wanted = np.isin(ids, np.concatenate([block.sample_id for block in blocks]))
    first, length = source.plan.piece_runs(window.pieces)
    if wanted.all():
        return read_runs(source.index, first, length)
    piece = np.where(wanted, np.repeat(np.arange(len(length)), length), -1)
    begins = np.flatnonzero(wanted & (np.diff(piece, prepend=-1) != 0))
    ends = np.flatnonzero(wanted & (np.diff(piece, append=-1) != 0))
    return read_runs(source.index, ids[begins], ends - begins + 1)


def _crop_block(source: ViewSource, block: Block, rows: Rows, seen: SeenIds, on_bad: OnBad, times: StageTimes) -> CropBlock:
    sized = list(zip(source.views.views, source.views.sizes_px, strict=True))
    views, good = crop_rows(rows, sized, source.seed, block.epoch, source.data.max_pixels, on_bad, source.views.chosen_resizing, times)
    sample_id = block.sample_id[good]
    return CropBlock(views, sample_id, block.epoch, seen.unseen(block.epoch, sample_id))


def crop_rows(
    rows: Rows,
    views: Sequence[tuple[ViewConfig, int]],
    seed: int,
    epoch: int,
    max_pixels: int,
    on_bad: OnBad,
    resizing: Resizing = "fast",
    times: StageTimes | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The crops of each view, (n, H, W, 3) uint8, of the rows that can be decoded, and a (B,) bool mask of these rows.

    One decoded image is held at a time.

    Args:
        views: How each view is made, and its side in pixels.
        on_bad: Called with the other rows, if there are any.
        times: Counts the time of decoding and of making views.
    """
    times = times or StageTimes()
    with times.stage("decode"):
        images = open_rows(rows, max_pixels)
    sizes = np.array([(1, 1) if isinstance(image, BadRow) else image.size for image in images], np.int64).reshape(-1, 2)
    crops = [
        Crops(draw(view, sizes, DrawKey(seed, epoch, rows.sample_id, number)), size_px, view.interpolation, resizing, view.antialias)
        for number, (view, size_px) in enumerate(views)
    ]
    shrinks = np.min([view.shrink for view in crops], axis=0).tolist()
    bad: list[BadRow] = []
    good = np.ones(len(images), bool)
    for row, (image, most_shrink) in enumerate(zip(images, shrinks, strict=True)):
        with times.stage("decode", 1):
            pixels = image if isinstance(image, BadRow) else _pixels(rows, row, image, most_shrink)
        if isinstance(pixels, BadRow):
            bad.append(pixels)
            good[row] = False
        else:
            with times.stage("views", 1):
                for view in crops:
                    view.cut(row, *pixels)
        del pixels  # before the next image is decoded
    if bad:
        on_bad(bad)
    return [view.views if good.all() else view.views[good] for view in crops], good


def _pixels(rows: Rows, row: int, image: OpenImage, most_shrink: int) -> tuple[np.ndarray, int] | BadRow:
    try:
        return image.pixels(most_shrink)
    except DecodeError as error:
        return rows.bad_row(row, str(error))


def decode_images(rows: Rows, max_pixels: int, use: Callable[[Image.Image], T], on_bad: OnBad) -> tuple[list[T], np.ndarray]:
    """The results of `use` for the images that can be decoded, one after the other, and a (n,) bool mask of them; `on_bad` is called with
    the other rows."""
    found = decode_rows(rows, max_pixels, use)
    good = np.array([not isinstance(result, BadRow) for result in found], bool)
    if bad := [row for row in found if isinstance(row, BadRow)]:
        on_bad(bad)
    return [result for result in found if not isinstance(result, BadRow)], good


def finish_block(
    source: ViewSource,
    block: CropBlock,
    stylize_block: StylizeBlock | None,
    device_type: str = "cpu",
    times: StageTimes | None = None,
    teach: Teach | None = None,
) -> Arrays:
    """The block's views, stylized and with changed colors, without the rows that only serve as style partners.

    In torch the colors are changed between stylizing and rounding, and their time counts as the stylizer's.
    """
    times = times or StageTimes()
    in_torch = source.views.backend_on(device_type) == "torch"
    # The draws for the colors do not depend on the image's size, so any size will do here.
    sizes = np.full((len(block.sample_id), 2), source.views.size_px, np.int64)
    sample_id = block.sample_id[block.keep]
    arrays: Arrays = {"sample_id": sample_id, "epoch": np.full(len(sample_id), block.epoch, np.int64)}
    for number, (config, crops) in enumerate(zip(source.views.views, block.views, strict=True)):
        key = DrawKey(source.seed, block.epoch, block.sample_id, number)
        with times.stage("views"):
            params = draw(config, sizes, key)
        if in_torch:
            with times.stage("stylize" if stylize_block else "views", len(crops) if stylize_block and number == 0 else 0):
                view = _finish_in_torch(crops, key, params, stylize_block, device_type)
        else:
            if stylize_block:
                with times.stage("stylize", len(crops) if number == 0 else 0):
                    crops = stylize_block(crops, key)
            with times.stage("views"):
                view = opencv.color(crops, params)
        arrays[view_name(number)] = view if block.keep.all() else view[block.keep]
    if teach is not None and len(sample_id):
        with times.stage("stylize"):
            arrays[TARGETS] = teach(arrays[view_name(1)])
    return arrays


def _finish_in_torch(
    crops: np.ndarray, key: DrawKey, params: ViewParams, stylize_block: StylizeBlock | None, device_type: str
) -> np.ndarray:
    """The view (B, H, W, 3) uint8; pixels go to the device once and are rounded once."""
    import torch  # light workers do not load it

    from ray_sassl.nn.pixels import to_float, to_uint8
    from ray_sassl.views import ops

    if stylize_block is not None:
        return stylize_block(crops, key, lambda images, rows: ops.color(images, params.take(rows)))
    with torch.inference_mode():
        return to_uint8(ops.color(to_float(crops, torch.device(device_type)), params))


def windows(source: ViewSource, epochs: float, seen: SeenIds) -> Iterator[Window]:
    """The windows of all epochs in order, without those that the run has seen completely. A part of an epoch counts as a whole one."""
    plan = source.plan
    for epoch in range(int(np.ceil(epochs))):
        if seen.count(epoch) == source.index.num_rows:
            continue
        for window in plan.each_window(epoch):
            if not seen.is_touched(epoch) or seen.unseen(epoch, plan.row_ids(window)).any():
                yield window


def local_batches(
    source: ViewSource,
    *,
    epochs: float,
    batch_size: int,
    on_bad: OnBad,
    stylize_block: StylizeBlock | None = None,
    seen: SeenIds | None = None,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    times: StageTimes | None = None,
    num_threads: int = 1,
    teach: Teach | None = None,
) -> Iterator[Arrays]:
    """The whole flow in this process: the share of `rank` of `world_size` in each global batch, in `accumulate` parts.

    Args:
        batch_size: Rows of one part. Every step's global batch and each of its parts have the same rows for any number of workers.
        times: Counts the time of the stages.
        num_threads: With more than one, so many threads make blocks ahead of the one that is needed; rows and bytes stay the same.
    """
    seen, times = seen or SeenIds(source.index.num_rows), times or StageTimes()
    if num_threads > 1:
        blocks = _blocks_in_threads(source, epochs, seen, on_bad, stylize_block, times, num_threads, teach)
    else:
        pieces = encoded_windows(source, windows(source, epochs, seen), seen, times)
        cropped = (_crop_block(source, *piece, seen, on_bad, times) for piece in pieces)
        blocks = (finish_block(source, block, stylize_block, times=times, teach=teach) for block in cropped if len(block.sample_id))
    for batch in rebatch(blocks, accumulate * world_size * batch_size):
        for part in range(accumulate):
            first = (part * world_size + rank) * batch_size
            yield {name: array[first : first + batch_size] for name, array in batch.items()}


def _blocks_in_threads(
    source: ViewSource,
    epochs: float,
    seen: SeenIds,
    on_bad: OnBad,
    stylize_block: StylizeBlock | None,
    times: StageTimes,
    num_threads: int,
    teach: Teach | None,
) -> Iterator[Arrays]:
    """The finished blocks in order. Images are read here and decoded in threads; one block at a time is stylized, or seen by a teacher."""
    stylizes = Lock()
    teach = one_at_a_time(teach)

    def stylize(images: np.ndarray, key: DrawKey, finish: Callable[[Tensor, np.ndarray], Tensor] | None = None) -> np.ndarray:
        assert stylize_block is not None
        with stylizes:
            return stylize_block(images, key, finish)

    def finished(piece: tuple[Block, Rows]) -> tuple[Arrays | None, list[BadRow]]:
        bad: list[BadRow] = []
        cropped = _crop_block(source, *piece, seen, bad.extend, times)
        if not len(cropped.sample_id):
            return None, bad
        return finish_block(source, cropped, stylize if stylize_block else None, times=times, teach=teach), bad

    pieces = encoded_windows(source, windows(source, epochs, seen), seen, times)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for started in ahead(lambda piece: pool.submit(finished, piece), pieces, num_threads):
            block, bad = started.result()
            if bad:
                on_bad(bad)
            if block is not None:
                yield block
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_at_a_time(teach: Teach | None, *, counts_waiting: bool = True) -> Teach | None:
    """The teacher, which threads that call it at once wait for; the time that they wait counts as that of their stage, or not."""
    if teach is None:
        return None
    turn = Lock()

    def taught(views: np.ndarray) -> np.ndarray:
        with turn if counts_waiting else in_turn(turn):
            return teach(views)

    return taught


def rebatch(blocks: Iterable[Arrays], batch_size: int) -> Iterator[Arrays]:
    """The rows of the blocks in order, in batches of exactly `batch_size`; the remainder at the end is dropped."""
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


def without(seen: SeenIds, bad: np.ndarray) -> SeenIds:
    """A copy of the record in which the rows (n,) that are known to be bad count as seen in the epochs that were begun, so that a resumed
    run does not try them again."""
    copy = seen.copy()
    copy.add_to_touched(bad)
    return copy
