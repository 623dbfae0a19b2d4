from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sassl.data.plan import Plan

_group_rows = st.lists(st.integers(0, 60), min_size=1, max_size=40).filter(any)


def _plan(group_rows: list[int], seed: int = 0, shuffle_window: int = 50, block_rows: int = 16) -> Plan:
    return Plan(SimpleNamespace(group_rows=np.array(group_rows, dtype=np.int64)), seed, shuffle_window, block_rows)  # pyright: ignore[reportArgumentType]


def _order(plan: Plan, epoch: int) -> list[int]:
    return [int(id_) for window in plan.windows(epoch) for block in plan.blocks(window) for id_ in block.sample_id]


@settings(max_examples=80, deadline=None)
@given(_group_rows, st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 200), st.integers(1, 64))
def test_every_row_is_visited_once_an_epoch(group_rows: list[int], seed: int, epoch: int, shuffle_window: int, block_rows: int):
    order = _order(_plan(group_rows, seed, shuffle_window, block_rows), epoch)
    assert sorted(order) == list(range(sum(group_rows)))


@settings(max_examples=30, deadline=None)
@given(_group_rows, st.integers(0, 2**40), st.integers(0, 5))
def test_the_order_depends_on_nothing_but_seed_epoch_and_index(group_rows: list[int], seed: int, epoch: int):
    np.random.seed(seed % 2**32)
    one = _order(_plan(group_rows, seed), epoch)
    np.random.seed((seed + 1) % 2**32)
    other = _plan(group_rows, seed)
    _order(other, epoch + 1)
    assert _order(other, epoch) == one


@settings(max_examples=80, deadline=None)
@given(_group_rows, st.integers(1, 200), st.integers(1, 64))
def test_rows_stay_within_their_window_and_windows_and_blocks_have_their_sizes(group_rows: list[int], shuffle_window: int, block_rows: int):
    plan = _plan(group_rows, 1, shuffle_window, block_rows)
    windows = plan.windows(0)
    assert all(window.num_rows >= shuffle_window for window in windows[:-1])
    assert len(windows) == 1 or 2 * windows[-1].num_rows >= shuffle_window
    for window in windows:
        ids = {int(plan.group_first[group]) + i for group in window.groups for i in range(group_rows[group])}
        blocks = plan.blocks(window)
        assert {int(id_) for block in blocks for id_ in block.sample_id} == ids
        assert all(len(block.sample_id) == block_rows for block in blocks[:-1])
        assert len(blocks) == 1 or block_rows <= 2 * len(blocks[-1].sample_id) < 3 * block_rows


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(_order(_plan([20] * 20, seed), epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_rows_of_distant_groups_meet_in_a_window():
    windows = _plan([10] * 100, shuffle_window=100).windows(0)
    assert np.mean([np.ptp(window.groups) for window in windows]) > 50
