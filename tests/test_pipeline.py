"""The whole flow from shards to batches, in this process."""

from __future__ import annotations

import io
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.decode import OpenImage
from ray_sassl.data.index import Index
from ray_sassl.data.plan import Window
from ray_sassl.data.quarantine import BadRow, TooManyBadRowsError
from ray_sassl.data.reading import build_index, cached_index
from ray_sassl.data.seen import SeenIds
from ray_sassl.evaluation.datasets import LabeledImages
from ray_sassl.pipeline import (
    OnBad,
    StylizeBlock,
    ViewSource,
    crop_blocks,
    crop_rows,
    finish_block,
    local_batches,
    rebatch,
    windows,
    without,
)
from ray_sassl.style.augment import StyleAugmentation
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.types import Arrays, view_names
from ray_sassl.views.center_crop import EvaluationView
from ray_sassl.views.crop import Resizing
from ray_sassl.views.recipes import simclr

CPU = torch.device("cpu")
NUM_ROWS = 50
BAD = (7, 31, 32)
GOOD = set(range(NUM_ROWS)) - set(BAD)
Key = tuple[int, int]


def _png(colors: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(colors).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Fifty small images in two shards, with row groups of eight; three of them are not images, and every fifth has no label."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    images = [_png(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(NUM_ROWS)]
    for row in BAD:
        images[row] = b"no image"
    labels = [row % 3 if row % 5 else None for row in range(NUM_ROWS)]
    for shard, rows in enumerate((slice(0, 20), slice(20, NUM_ROWS))):
        pq.write_table(
            pa.table({"image": images[rows], "label": pa.array(labels[rows], pa.int32())}), folder / f"{shard}.parquet", row_group_size=8
        )
    return DataConfig(path=str(folder), shuffle_window=16, block_rows=6)


@pytest.fixture(scope="module")
def source(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> ViewSource:
    path = str(tmp_path_factory.mktemp("run") / "index.arrow")
    cached_index(data, path)
    return ViewSource(path, data, simclr(8), seed=3)


@pytest.fixture(scope="module")
def stylize_block() -> StylizeBlock:
    return _stylize_block(views="both", prob=0.9, alpha=(0.5, 1), beta=(0.5, 1))


def _stylize_block(**fields: Any) -> StylizeBlock:
    return StyleAugmentation(ColorStatistics().build(CPU), SasslConfig(**fields), CPU).stylize


def _ignore(rows: list[BadRow]) -> None:
    """The tests that hand this over look at what is left."""


def _batches(source: ViewSource, batch_size: int, **kwargs: Any) -> Iterator[Arrays]:
    return local_batches(source, **{"epochs": 2, "batch_size": batch_size, "on_bad": _ignore, **kwargs})


def _keys(batch: Arrays) -> list[Key]:
    return list(zip(batch["epoch"].tolist(), batch["sample_id"].tolist(), strict=True))


def _views_by_key(batches: Iterator[Arrays]) -> dict[Key, bytes]:
    """Both views' pixels of each (epoch, sample id)."""
    found: dict[Key, bytes] = {}
    for batch in batches:
        for row, key in enumerate(_keys(batch)):
            assert key not in found
            found[key] = batch["view_0"][row].tobytes() + batch["view_1"][row].tobytes()
    return found


# Which rows, and in which order


def test_every_epoch_holds_every_good_row_once(source):
    keys = Counter(key for batch in _batches(source, 1) for key in _keys(batch))
    assert keys == Counter((epoch, row) for epoch in range(2) for row in GOOD)


@pytest.mark.parametrize("in_torch", [False, True])
def test_threads_change_neither_the_order_nor_a_byte_nor_what_is_bad(source, in_torch):
    if in_torch:
        source = replace(source, views=source.views.model_copy(update={"backend": "torch"}))
    found = []
    for num_threads in (1, 3):
        bad: list[list[BadRow]] = []
        batches = _batches(source, 9, stylize_block=_stylize_block(), num_threads=num_threads, on_bad=bad.append)
        found.append(([(_keys(batch), batch["view_0"].tobytes(), batch["view_1"].tobytes()) for batch in batches], bad))
    assert found[0] == found[1]
    assert found[0][1]


def test_threads_end_with_the_batches_and_their_errors_reach_the_caller(source):
    def refuse(rows: list[BadRow]) -> None:
        raise TooManyBadRowsError("too many")

    with pytest.raises(TooManyBadRowsError):
        list(_batches(source, 9, num_threads=2, on_bad=refuse))
    batches = _batches(source, 9, num_threads=2)
    next(batches)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("decode")]:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_batches_are_full_and_cross_the_end_of_an_epoch(source):
    batches = list(_batches(source, 9))
    assert {len(batch["sample_id"]) for batch in batches} == {9}
    assert len(batches) == 2 * len(GOOD) // 9
    assert any(len(set(batch["epoch"].tolist())) == 2 for batch in batches)
    assert {(name, array.dtype, array.shape[1:]) for name, array in batches[0].items()} == {
        ("view_0", np.dtype(np.uint8), (8, 8, 3)),
        ("view_1", np.dtype(np.uint8), (8, 8, 3)),
        ("sample_id", np.dtype(np.int64), ()),
        ("epoch", np.dtype(np.int64), ()),
    }


def test_epochs_have_different_orders(source):
    keys = [key for batch in _batches(source, 1) for key in _keys(batch)]
    assert [row for epoch, row in keys if epoch == 0] != [row for epoch, row in keys if epoch == 1]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (4, 1), (1, 2), (2, 2), (3, 2)])
def test_workers_share_the_same_global_batches_and_parts(source, world_size, accumulate):
    part = 12 // (world_size * accumulate) * world_size
    ranks = [_batches(source, part // world_size, rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    shared = [[key for batch in parts for key in _keys(batch)] for parts in zip(*ranks, strict=True)]
    alone = [_keys(batch) for batch in _batches(source, part, accumulate=accumulate)]
    assert shared == alone


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (1, 1)])
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_every_row_is_seen_once_an_epoch_when_a_run_is_resumed_on_other_workers(source, before, after, num_steps):
    global_batch, total_steps = 12, 7

    def steps(world_size: int, seen: SeenIds, count: int) -> list[Key]:
        """The keys of so many steps, in the order of the global batch."""
        ranks = [
            _batches(source, global_batch // world_size, rank=rank, world_size=world_size, seen=seen.copy()) for rank in range(world_size)
        ]
        return [key for _ in range(count) for rank in ranks for key in _keys(next(rank))]

    seen = SeenIds(NUM_ROWS)
    first = steps(before, seen, num_steps)
    epochs, rows = np.array(first).T
    seen.add(epochs, rows)
    rest = steps(after, seen, total_steps - num_steps)
    assert first + rest == steps(1, SeenIds(NUM_ROWS), total_steps)
    assert {row for epoch, row in first + rest if epoch == 0} == GOOD


# The views


@pytest.mark.parametrize("kwargs", [{"batch_size": 1}, {"batch_size": 47}, {"batch_size": 5, "accumulate": 2}])
def test_a_samples_views_are_the_same_bytes_in_any_batch(source, stylize_block, kwargs):
    expected = _views_by_key(_batches(source, 10, stylize_block=stylize_block))
    found = _views_by_key(_batches(source, stylize_block=stylize_block, **kwargs))
    assert len(found) > 60
    assert all(found[key] == expected[key] for key in found.keys() & expected.keys())


def test_a_samples_views_are_the_same_bytes_on_any_number_of_workers(source, stylize_block):
    expected = _views_by_key(_batches(source, 12, stylize_block=stylize_block))
    for world_size in (2, 3):
        found: dict[Key, bytes] = {}
        for rank in range(world_size):
            found |= _views_by_key(_batches(source, 12 // world_size, rank=rank, world_size=world_size, stylize_block=stylize_block))
        assert found == expected


def test_a_resumed_run_gives_its_samples_the_style_partners_that_they_would_have_had(source, stylize_block):
    expected = _views_by_key(_batches(source, 1, stylize_block=stylize_block))
    seen = SeenIds(NUM_ROWS)
    half = np.random.default_rng(1).permutation(NUM_ROWS)[:25]
    seen.add(np.zeros(25, np.int64), half)
    found = _views_by_key(_batches(source, 1, stylize_block=stylize_block, seen=seen))
    assert found.keys() == {key for key in expected if key[0] == 1 or key[1] not in half}
    assert all(found[key] == expected[key] for key in found)


def test_blocks_that_were_seen_whole_are_not_read_again(source):
    window = next(windows(source, 1, SeenIds(NUM_ROWS)))
    first, *others = source.plan.blocks(window)
    seen = SeenIds(NUM_ROWS)
    seen.add(np.zeros(len(first.sample_id), np.int64), first.sample_id)
    blocks = list(crop_blocks(source, window, seen, _ignore))
    assert sorted(np.concatenate([block.sample_id for block in blocks])) == sorted(
        set(np.concatenate([b.sample_id for b in others])) & GOOD
    )


def test_epochs_and_seeds_change_the_views(source):
    one, other_seed = (_views_by_key(_batches(s, 1)) for s in (source, replace(source, seed=4)))
    assert all(one[0, row] != one[1, row] for row in GOOD)
    assert all(one[key] != other_seed[key] for key in one)


def test_left_and_right_views_differ(source):
    batch = next(_batches(source, 40))
    assert (batch["view_0"] != batch["view_1"]).any(axis=(1, 2, 3)).all()


def test_style_augmentation_changes_pixels_and_nothing_else(source, stylize_block):
    plain, styled = next(_batches(source, 40)), next(_batches(source, 40, stylize_block=stylize_block))
    assert np.array_equal(plain["sample_id"], styled["sample_id"])
    assert (plain["view_0"] != styled["view_0"]).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.fixture(scope="module")
def multi_crop(source: ViewSource) -> ViewSource:
    """The source with nine local crops beside the pair, so that the last one's number has two digits."""
    small = source.views.left.model_copy(update={"crop_scale": (0.05, 0.3)})
    return replace(source, views=source.views.model_copy(update={"num_small": 9, "small_px": 4, "small": small}))


def test_local_crops_stand_behind_the_pair_in_their_own_size(multi_crop):
    batch = next(_batches(multi_crop, 9))
    assert view_names(batch) == [f"view_{number}" for number in range(11)]
    assert [batch[name].shape for name in view_names(batch)] == [(9, 8, 8, 3)] * 2 + [(9, 4, 4, 3)] * 9


def test_local_crops_do_not_change_the_pair(source, multi_crop, stylize_block):
    assert _views_by_key(_batches(multi_crop, 10, stylize_block=stylize_block)) == _views_by_key(
        _batches(source, 10, stylize_block=stylize_block)
    )


def test_all_views_of_a_sample_differ(multi_crop):
    batch = next(_batches(multi_crop, 40))
    small = [batch[name] for name in view_names(batch)[2:]]
    for number, view in enumerate(small):
        assert all((view != other).any(axis=(1, 2, 3)).mean() > 0.9 for other in small[:number])


@pytest.mark.parametrize("kwargs", [{"batch_size": 1}, {"batch_size": 5, "accumulate": 2}, {"batch_size": 5, "world_size": 2, "rank": 1}])
def test_a_samples_local_crops_are_the_same_bytes_in_any_batch_and_on_any_worker(multi_crop, kwargs):
    stylize_block = _stylize_block(views="all", alpha=(0.5, 1), beta=(0.5, 1))

    def local_crops(batches: Iterator[Arrays]) -> dict[Key, list[bytes]]:
        return {key: [b[name][row].tobytes() for name in view_names(b)[2:]] for b in batches for row, key in enumerate(_keys(b))}

    expected, found = (
        local_crops(_batches(multi_crop, 10, stylize_block=stylize_block)),
        local_crops(_batches(multi_crop, stylize_block=stylize_block, **kwargs)),
    )
    assert len(found) > 30
    assert all(found[key] == expected[key] for key in found.keys() & expected.keys())
    plain = local_crops(_batches(multi_crop, 10))
    assert all(plain[key] != expected[key] for key in plain)


def test_both_backends_make_the_same_views_to_within_rounding(source):
    opencv, torch_ = (
        next(_batches(replace(source, views=source.views.model_copy(update={"backend": backend})), 40)) for backend in ("opencv", "torch")
    )
    difference = np.abs(opencv["view_0"].astype(int) - torch_["view_0"])
    assert np.quantile(difference, 0.99) <= 3


def test_stylized_views_are_the_same_in_both_backends_to_within_rounding(source, stylize_block):
    opencv, torch_ = (
        next(_batches(replace(source, views=source.views.model_copy(update={"backend": backend})), 40, stylize_block=stylize_block))
        for backend in ("opencv", "torch")
    )
    assert np.quantile(np.abs(opencv["view_0"].astype(int) - torch_["view_0"]), 0.99) <= 3


@pytest.mark.parametrize("backend", ["opencv", "torch"])
def test_rows_that_are_style_partners_only_are_left_out_of_the_views(source, stylize_block, backend):
    source = replace(source, views=source.views.model_copy(update={"backend": backend}))
    window = next(windows(source, 1, SeenIds(NUM_ROWS)))
    block = next(crop_blocks(source, window, SeenIds(NUM_ROWS), _ignore))
    keep = np.arange(len(block.keep)) % 2 == 0
    whole, part = (finish_block(source, replace(block, keep=kept), stylize_block) for kept in (block.keep, keep))
    assert part.keys() == whole.keys()
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][keep])


def test_an_index_that_was_made_anew_at_the_same_path_is_the_one_that_is_used(data, tmp_path):
    path = str(tmp_path / "index.arrow")
    index = cached_index(data, path)
    whole = ViewSource(path, data, simclr(8), 0, index_mtime_ns=Path(path).stat().st_mtime_ns)
    assert whole.index.num_rows == NUM_ROWS
    smaller = data.model_copy(update={"path": index.file_path(0)})
    cached_index(smaller, path)
    assert replace(whole, index_mtime_ns=Path(path).stat().st_mtime_ns).index.num_rows == 20


# Rows that cannot be used


def test_bad_rows_are_reported_with_place_and_reason(source):
    told: list[BadRow] = []
    list(_batches(source, 1, epochs=1, on_bad=told.extend))
    assert {row.sample_id for row in told} == set(BAD)
    first = next(row for row in told if row.sample_id == 31)
    assert (Path(first.path).name, first.row) == ("1.parquet", 11)
    assert first.reason


def _photo(width: int, height: int, **options: Any) -> bytes:
    """A JPEG of soft spots."""
    spots = np.random.default_rng(width).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", **options)
    return out.getvalue()


def _rows(encoded: list[bytes]) -> Rows:
    number = np.arange(len(encoded))
    return Rows(number, list(encoded), np.full(len(encoded), -1), [f"f#{n}" for n in number], ["f"] * len(encoded), number)


def _crop_rows(encoded: list[bytes], size_px: int, resizing: Resizing, on_bad: OnBad = _ignore) -> tuple[list[np.ndarray], np.ndarray]:
    views = simclr(size_px)
    return crop_rows(_rows(encoded), list(zip(views.views, views.sizes_px, strict=True)), 0, 0, 10**7, on_bad, resizing)


def test_a_cut_off_image_is_reported_and_its_neighbors_are_unchanged():
    photos = [_photo(90, 70 + number) for number in range(4)]
    whole, good = _crop_rows(photos, 32, "fast")
    assert good.all()
    told: list[BadRow] = []
    rest, good = _crop_rows([photos[0], photos[1][: len(photos[1]) * 2 // 3], b"no image", photos[3]], 32, "fast", told.extend)
    assert good.tolist() == [True, False, False, True]
    assert [row.sample_id for row in told] == [1, 2]
    assert "truncated" in told[0].reason
    for some, all_ in zip(rest, whole, strict=True):
        np.testing.assert_array_equal(some, all_[good])


def test_large_photographs_are_decoded_smaller_and_look_the_same(monkeypatch):
    shapes = []
    pixels = OpenImage.pixels

    def watched(image: OpenImage, shrink: int = 1) -> tuple[np.ndarray, int]:
        found = pixels(image, shrink)
        shapes.append((*found[0].shape[:2], found[1]))
        return found

    monkeypatch.setattr(OpenImage, "pixels", watched)
    photos = [_photo(1000, 750, quality=95), _photo(90, 70), _photo(1000, 750, quality=95, progressive=True)]
    fast, _ = _crop_rows(photos, 32, "fast")
    exact, _ = _crop_rows(photos, 32, "pillow")
    assert shapes[1] == (70, 90, 1)
    assert min(shapes[0][2], shapes[2][2]) >= 2
    assert all(shape[:2] == (-(-750 // shape[2]), -(-1000 // shape[2])) for shape in (shapes[0], shapes[2]))
    assert shapes[3:] == [(750, 1000, 1), (70, 90, 1), (750, 1000, 1)]
    for view, reference in zip(fast, exact, strict=True):
        apart = np.abs(view.astype(int) - reference)
        assert apart.mean() < 1
        assert np.quantile(apart, 0.999) <= 6


def test_only_one_decoded_image_is_held_at_a_time():
    photos = [_photo(1200, 900)] * 12
    _crop_rows(photos[:1], 16, "pillow")
    tracemalloc.start()
    _crop_rows(photos, 16, "pillow")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 1200 * 900 * 3


def test_an_error_in_the_callback_for_bad_rows_ends_the_stream(source):
    def refuse(rows: list[BadRow]) -> None:
        raise RuntimeError("too many")

    with pytest.raises(RuntimeError, match="too many"):
        list(_batches(source, 1, on_bad=refuse))


def test_known_bad_rows_are_not_tried_again_in_an_epoch_that_was_begun(source):
    seen = SeenIds(NUM_ROWS)
    good = np.array(sorted(GOOD))
    seen.add(np.zeros(len(good), np.int64), good)
    told: list[BadRow] = []
    known = without(seen, np.array(BAD))
    assert list(_batches(source, 1, epochs=1, on_bad=told.extend, seen=known)) == []
    assert told == []
    assert known.count(0) == NUM_ROWS
    assert not known.is_touched(1)
    assert seen.count(0) == len(GOOD)


def test_the_odd_jpegs_are_decoded_but_for_the_truncated_one(shared_dir, tmp_path):
    data = DataConfig(path=str(shared_dir / "data" / "decode-odd"), label_column=None)
    path = str(tmp_path / "index.arrow")
    index = cached_index(data, path)
    told: list[BadRow] = []
    batches = list(_batches(ViewSource(path, data, simclr(8), 0), 1, epochs=1, on_bad=told.extend))
    assert len(batches) == index.num_rows - 1 == 4
    assert [Path(row.path).name for row in told] == ["truncated_jpeg.jpg"]


# Formats


def _views_of(index: Index, path: str, chosen: np.ndarray) -> dict[int, bytes]:
    """The views of the chosen samples, by sample id; a block is read where it holds one of them."""
    source = ViewSource(path, index.config, simclr(32), seed=5)
    seen = SeenIds(index.num_rows)
    others = np.setdiff1d(np.arange(index.num_rows), chosen)
    seen.add(np.zeros(len(others), np.int64), others)
    found = {}
    for window in windows(source, 1, seen):
        for block in crop_blocks(source, window, seen, _ignore):
            arrays = finish_block(source, block, None)
            for row, sample in enumerate(arrays["sample_id"].tolist()):
                found[sample] = arrays["view_0"][row].tobytes() + arrays["view_1"][row].tobytes()
    return found


@pytest.mark.parametrize("num_samples", [12, pytest.param(800, marks=pytest.mark.slow)])
def test_webdataset_and_parquet_give_the_same_views_of_the_same_images(shared_dir, tmp_path, num_samples):
    views = {}
    for name in ("parquet", "wds"):
        data = DataConfig(path=str(shared_dir / "data" / "imagenet-sample" / name), shuffle_window=200, block_rows=2)
        path = str(tmp_path / f"{name}.arrow")
        index = cached_index(data, path)
        assert index.num_rows == 800
        chosen = np.linspace(0, 799, num_samples).astype(int)
        views[name] = _views_of(index, path, chosen)
        assert sorted(views[name]) == chosen.tolist()
    assert views["parquet"] == views["wds"]


# Batches and evaluation images


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 12, 13])
def test_rebatching_keeps_the_rows_order_and_drops_what_fills_no_batch(batch_size):
    ends = np.cumsum([4, 0, 1, 5, 2])
    blocks = [{"sample_id": np.arange(first, end)} for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    batches = [batch["sample_id"].tolist() for batch in rebatch(iter(blocks), batch_size)]
    whole = 12 // batch_size
    assert batches == np.arange(whole * batch_size).reshape(whole, batch_size).tolist()


def test_labeled_images_leave_out_rows_without_a_label_and_bad_ones(data):
    images = LabeledImages(data.model_copy(update={"max_bad_fraction": 1.0}), 8)
    batches = list(images)
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.tolist() == [row % 3 for row in sorted(GOOD) if row % 5]
    assert {images.shape[1:] for images, _ in batches} == {(8, 8, 3)}
    assert set(images.quarantine.sample_ids) == set(BAD)


def test_a_limit_takes_some_images_of_each_row_group(data):
    index = build_index(data)
    few = [labels for _, labels in LabeledImages(data.model_copy(update={"max_bad_fraction": 1.0}), 8, 14, index)]
    assert index.num_groups == 7
    assert len(np.concatenate(few)) == 13  # two of each, and one of them is not an image


def test_a_limit_is_reached_with_small_row_groups_too(tmp_path):
    images = [_png(np.full((8, 8, 3), row, np.uint8)) for row in range(100)]
    pq.write_table(pa.table({"image": images, "label": range(100)}), tmp_path / "train-0.parquet", row_group_size=1)
    data = DataConfig(path=str(tmp_path))
    few = [labels for _, labels in LabeledImages(data, 8, 80)]
    assert len(np.concatenate(few)) == 80


def test_evaluation_images_are_resized_and_above_64_px_cropped_at_the_center():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255
    large = np.asarray(EvaluationView(70).of(Image.fromarray(wide)))
    assert large.shape == (70, 70, 3)
    assert large.min() > 250
    small = np.asarray(EvaluationView(32).of(Image.fromarray(wide)))
    assert small.shape == (32, 32, 3)
    assert small[:, 0].max() < 5


def test_windows_are_picklable_work_for_any_process(source):
    window = next(windows(source, 1, SeenIds(NUM_ROWS)))
    assert isinstance(window, Window)
    import pickle

    other_source, other_window = pickle.loads(pickle.dumps((source, window)))
    one, other = (next(crop_blocks(s, w, SeenIds(NUM_ROWS), _ignore)) for s, w in ((source, window), (other_source, other_window)))
    assert np.array_equal(one.views[0], other.views[0])
