from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sassl.data import GROUP_SCHEMA, DataConfig
from ray_sassl.data import plan as plan_module
from ray_sassl.data.index import FILE_SCHEMA, Index
from ray_sassl.data.plan import Plan, Window, default_window_bytes, plan_of, row_bytes, with_window

_group_rows = st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(any)


def made_up_index(group_rows: list[int], format_: str = "webdataset", row_size: int = 100) -> Index:
    """An index of one file of rows of that size, without the file."""
    rows = np.array(group_rows, dtype=np.int64)
    ends = np.cumsum(rows) * (1 if format_ == "folder" else row_size)
    starts = np.concatenate([[0], ends[:-1]])
    groups = pa.table([np.zeros(len(rows), np.int32), starts, ends, rows], schema=GROUP_SCHEMA)
    num_files, size = (int(rows.sum()), row_size) if format_ == "folder" else (1, int(rows.sum()) * row_size)
    files = pa.table([["x"] * num_files, [size] * num_files, [1] * num_files], schema=FILE_SCHEMA)
    return Index(DataConfig(path="/nowhere"), cast(Any, format_), "/nowhere/", files, groups, None)


def _plan(group_rows: list[int], seed: int = 0, window: int = 50, block_rows: int = 16, format_: str = "webdataset") -> Plan:
    """A plan with windows of about so many rows; `format_` "older" is the order of older runs."""
    if format_ == "older":
        return Plan(made_up_index(group_rows, "parquet"), seed, block_rows, window_rows=window)
    return Plan(made_up_index(group_rows, format_), seed, block_rows, window_bytes=window * 100)


def _order(plan: Plan, epoch: int) -> list[int]:
    return [int(id_) for window in plan.windows(epoch) for block in plan.blocks(window) for id_ in block.sample_id]


_formats = st.sampled_from(["webdataset", "folder", "parquet", "older"])


@settings(max_examples=120, deadline=None)
@given(_group_rows, st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 200), st.integers(1, 64), _formats)
def test_every_row_is_visited_once_an_epoch(group_rows: list[int], seed: int, epoch: int, window: int, block_rows: int, format_: str):
    plan = _plan(group_rows, seed, window, block_rows, format_)
    assert sorted(_order(plan, epoch)) == list(range(sum(group_rows)))
    for of_window in plan.windows(epoch):
        assert sorted(plan.row_ids(of_window)) == sorted(np.concatenate([block.sample_id for block in plan.blocks(of_window)]))
        parts = [number for part in plan.parts(of_window) for number in part]
        assert parts == [block.number for block in plan.blocks(of_window)]


@settings(max_examples=30, deadline=None)
@given(_group_rows, st.integers(0, 2**40), st.integers(0, 5), _formats)
def test_the_order_depends_on_nothing_but_seed_epoch_and_index(group_rows: list[int], seed: int, epoch: int, format_: str):
    np.random.seed(seed % 2**32)
    one = _order(_plan(group_rows, seed, format_=format_), epoch)
    np.random.seed((seed + 1) % 2**32)
    other = _plan(group_rows, seed, format_=format_)
    _order(other, epoch + 1)
    assert _order(other, epoch) == one


@settings(max_examples=80, deadline=None)
@given(_group_rows, st.integers(1, 200), st.integers(1, 64), _formats)
def test_windows_and_blocks_have_their_sizes(group_rows: list[int], window: int, block_rows: int, format_: str):
    plan = _plan(group_rows, 1, window, block_rows, format_)
    windows = plan.windows(0)
    if format_ == "older":
        assert all(one.num_rows >= window for one in windows[:-1])
        assert len(windows) == 1 or 2 * windows[-1].num_rows >= window
    else:
        assert all(one.num_rows <= 1.5 * window or len(one.pieces) == 1 for one in windows)
        assert all(one.num_rows + other.num_rows > plan.window_rows for one, other in pairwise(windows))
    for one in windows:
        blocks = plan.blocks(one)
        assert all(len(block.sample_id) == block_rows for block in blocks[:-1])
        assert len(blocks) == 1 or block_rows <= 2 * len(blocks[-1].sample_id) < 3 * block_rows


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(_order(_plan([20] * 20, seed), epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_run_from_before_there_were_pieces_keeps_its_order():
    plan = _plan([5, 0, 7, 3, 6], seed=3, window=8, block_rows=4, format_="older")
    assert _order(plan, 0) == [5, 18, 6, 10, 11, 8, 19, 7, 16, 17, 15, 9, 20, 2, 0, 14, 3, 4, 12, 1, 13]


def test_a_window_is_bounded_in_bytes_whichever_images_it_gets():
    rows, sizes = 64, np.where(np.arange(200) % 10, 100, 20_000)  # every tenth group has large images
    ends = np.cumsum(sizes * rows)
    groups = pa.table([np.zeros(200, np.int32), ends - sizes * rows, ends, [rows] * 200], schema=GROUP_SCHEMA)
    files = pa.table([["x"], [int(ends[-1])], [1]], schema=FILE_SCHEMA)
    plan = Plan(Index(DataConfig(path="/nowhere"), "webdataset", "/nowhere/", files, groups, None), 0, 16, window_bytes=2_000_000)
    bytes_of = [sizes[plan.row_ids(window) // rows].sum() for window in plan.windows(0)]
    assert np.median(bytes_of) > 1_000_000
    assert max(bytes_of) <= 3_000_000
    assert sorted(_order(plan, 0)) == list(range(200 * rows))


def _batches(plan: Plan, num: int, size: int = 256) -> Iterator[np.ndarray]:
    """The ids of the first batches of an epoch."""
    ids = (block.sample_id for window in plan.each_window(0) for block in plan.blocks(window))
    rest = np.empty(0, np.int64)
    while num:
        if len(rest) < size:
            rest = np.concatenate([rest, next(ids)])
            continue
        yield rest[:size]
        rest, num = rest[size:], num - 1


@pytest.mark.parametrize("row_size", [2_500, 110_000])
@pytest.mark.parametrize(("format_", "group_rows"), [("webdataset", 256), ("folder", 256), ("parquet", 100), ("parquet", 256)])
def test_batches_of_classes_in_order_are_mixed_by_default(format_: str, group_rows: int, row_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_module, "memory_bytes", lambda: 24e9)
    index = made_up_index([group_rows] * (256_000 // group_rows), format_, row_size)
    for batch in _batches(plan_of(index, with_window(index.config, index), seed=0), 60):
        counts = np.bincount(batch * 1000 // index.num_rows, minlength=1000)
        assert (counts > 0).sum() >= 150
        assert (counts * (counts - 1)).sum() <= 0.005 * 256 * 255


def test_each_block_has_its_share_of_every_piece():
    plan = _plan([64] * 40, window=40 * 64, block_rows=40, format_="parquet")
    (window,) = plan.windows(0)
    for block in plan.blocks(window):
        assert np.bincount(block.sample_id // 64, minlength=40).tolist() == [1] * 40
    orders = [np.argsort(block.sample_id // 64).tolist() for block in plan.blocks(window)]
    assert len({tuple(order) for order in orders}) == 64, "rows are shuffled within a block"


def test_the_memory_bounds_the_window_and_the_config_keeps_it(monkeypatch: pytest.MonkeyPatch):
    index = made_up_index([256] * 1000, "parquet", 110_000)
    sizes = {}
    for gigabytes in (8, 24, 1000):
        monkeypatch.setattr(plan_module, "memory_bytes", lambda gigabytes=gigabytes: gigabytes * 1e9)
        sizes[gigabytes] = default_window_bytes(index, 256)
    assert sizes[8] == 2e9
    assert sizes[24] == sizes[1000] == pytest.approx(193 * 256 * 110_000)
    kept = with_window(index.config, index)
    monkeypatch.setattr(plan_module, "memory_bytes", lambda: 1e9)
    assert with_window(kept, index) == kept
    assert plan_of(index, kept, 0).window_rows == 193 * 256


def test_a_large_window_is_the_work_of_several_tasks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_module, "_TASK_ROWS", 64)
    plan = _plan([64] * 40, window=40 * 64, block_rows=32, format_="parquet")
    (window,) = plan.windows(0)
    assert plan.has_parts
    assert plan.parts(window) == [range(first, first + 2) for first in range(0, 80, 2)]
    assert not _plan([64] * 40, window=64, block_rows=32).has_parts


def test_the_bytes_of_rows_are_those_of_their_files():
    assert row_bytes(made_up_index([3, 5], "webdataset", 7)).tolist() == [7, 7]
    assert row_bytes(made_up_index([3, 5], "folder", 7)).tolist() == [7, 7]
    assert row_bytes(made_up_index([3, 5], "parquet", 7)).tolist() == [7, 7]


def test_planning_the_first_windows_does_not_look_at_the_others(monkeypatch: pytest.MonkeyPatch):
    looked = []
    piece_runs = Plan.piece_runs
    monkeypatch.setattr(Plan, "piece_runs", lambda plan, pieces: looked.append(len(pieces)) or piece_runs(plan, pieces))
    numbers = []
    for groups in (1_000, 50_000):
        looked.clear()
        plan = Plan(made_up_index([256] * groups, row_size=110_000), 0, 256)
        first = list(islice(plan.each_window(0), 10))
        assert all(isinstance(window, Window) for window in first)
        numbers.append(sum(looked))
    assert numbers[1] <= 1.01 * numbers[0]
