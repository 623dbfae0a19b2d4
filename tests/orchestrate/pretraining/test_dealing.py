"""Each of several streams gets its rows of every epoch, whichever streams have begun it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.plan import Plan
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.dealing import Piece, Share, pieces
from ray_sassl.orchestrate.pretraining.feeding import PlanDatasource, piece_of_row
from ray_sassl.pipeline import ViewSource
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.orchestrate.conftest import small_config, write_shards

NUM_ROWS = 162
ORDERS = (
    ["data.shuffle_window=60", "data.block_rows=30"],
    ["data.shuffle_window=40", "data.block_rows=7"],
    ["data.shuffle_window=null", "data.shuffle_gb=0.00005", "data.block_rows=10"],
    ["data.shuffle_window=1000", "data.block_rows=50"],
)


def _source(folder: Path, order: Iterable[str] = ORDERS[0]) -> ViewSource:
    config = apply_overrides(small_config(write_shards(folder, NUM_ROWS)), list(order))
    prepare_run_dir(config, str(folder / "run"), resume=False)
    return view_source(config, str(folder / "run"))


def _rows(source: ViewSource, epochs: float, seen: SeenIds, share: Share) -> list[tuple[int, int]]:
    """What the stream gives, (epoch, sample id) in order, as `ReadStage` reads its pieces."""
    rows = []
    for window, blocks, places in pieces(source, epochs, seen, share):
        for block in source.plan.blocks(window)[blocks.start : blocks.stop]:
            ids = block.sample_id if places is None else block.sample_id[places.start : places.stop]
            rows += [(window.epoch, int(number)) for number in ids[seen.unseen(window.epoch, ids)]]
    return rows


def _streams(source: ViewSource, epochs: float, seen: SeenIds, count: int, num_bad: int = 0) -> list[list[tuple[int, int]]]:
    return [_rows(source, epochs, seen, Share(number, count, num_bad)) for number in range(count)]


def _seen(rows: Iterable[tuple[int, int]]) -> SeenIds:
    seen = SeenIds(NUM_ROWS)
    epoch, sample_id = np.array(list(rows), np.int64).reshape(-1, 2).T
    seen.add(epoch, sample_id)
    return seen


@pytest.mark.parametrize("order", ORDERS, ids=["rows", "small blocks", "bytes", "one window"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_streams_get_equal_numbers_of_rows_of_each_epoch_and_each_row_once(tmp_path: Path, order: list[str], count: int):
    source = _source(tmp_path, order)
    streams = _streams(source, 7, SeenIds(NUM_ROWS), count)
    assert Counter(row for rows in streams for row in rows) == Counter((epoch, row) for epoch in range(7) for row in range(NUM_ROWS))
    assert max(map(len, streams)) - min(map(len, streams)) <= 1
    for rows in streams:
        assert [epoch for epoch, _ in rows] == sorted(epoch for epoch, _ in rows)
        assert all(NUM_ROWS // count <= number <= NUM_ROWS // count + 1 for number in Counter(epoch for epoch, _ in rows).values())


def test_one_stream_gets_the_plan_as_it_is(tmp_path: Path):
    source, seen = _source(tmp_path), SeenIds(NUM_ROWS)
    plan = [Piece(window, blocks) for epoch in range(2) for window in source.plan.windows(epoch) for blocks in source.plan.parts(window)]
    assert list(pieces(source, 2, seen, Share())) == list(pieces(source, 2, seen)) == plan


@pytest.mark.parametrize("taken", [8, 40, 77, 81, 100, 161])
@pytest.mark.parametrize("count", [2, 3])
def test_as_many_streams_go_on_where_they_were_stopped(tmp_path: Path, count: int, taken: int):
    source = _source(tmp_path, ORDERS[1])
    before = _streams(source, 4, SeenIds(NUM_ROWS), count)
    seen = _seen(row for rows in before for row in rows[:taken])
    assert _streams(source, 4, seen, count) == [rows[taken:] for rows in before]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 2), (2, 1)])
def test_more_or_fewer_streams_share_what_is_left(tmp_path: Path, before: int, after: int):
    source = _source(tmp_path)
    taken = [row for rows in _streams(source, 4, SeenIds(NUM_ROWS), before) for row in rows[: 210 // before]]
    streams = _streams(source, 4, _seen(taken), after)
    assert Counter([row for rows in streams for row in rows] + taken) == Counter((e, row) for e in range(4) for row in range(NUM_ROWS))
    assert max(map(len, streams)) - min(map(len, streams)) <= 1
    again = [row for rows in streams for row in rows[: 30 // after]]
    assert max(Counter(taken + again).values()) == 1
    streams = _streams(source, 4, _seen(taken + again), before)
    assert max(map(len, streams)) - min(map(len, streams)) <= 1


def test_known_bad_rows_change_the_place_of_no_other_row(tmp_path: Path):
    source, bad = _source(tmp_path), {3, 70, 71, 90}
    before = [[row for row in rows if row[1] not in bad] for rows in _streams(source, 3, SeenIds(NUM_ROWS), 2)]
    seen = _seen([row for rows in before for row in rows[:60]])
    seen.add_to_touched(np.array(sorted(bad)))
    after = [[row for row in rows if row[1] not in bad] for rows in _streams(source, 3, seen, 2, num_bad=len(bad))]
    assert after == [rows[60:] for rows in before]


def test_the_first_piece_costs_the_windows_that_every_stream_begins_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, looked = _source(tmp_path, ["data.shuffle_window=20", "data.block_rows=10"]), []
    each_window = Plan.each_window

    def noted(plan: Plan, epoch: int):
        for window in each_window(plan, epoch):
            looked.append(epoch)
            yield window

    monkeypatch.setattr(Plan, "each_window", noted)
    assert len(list(islice(pieces(source, 10**9, SeenIds(NUM_ROWS), Share(2, 3)), 1))) == 1
    assert len(looked) <= 6


def test_parts_of_blocks_travel_as_they_are(tmp_path: Path):
    source, share = _source(tmp_path, ORDERS[3]), Share(1, 3)
    plan = PlanDatasource(source, 1, SeenIds(NUM_ROWS), share)
    sent = []
    for task in [*plan.get_read_tasks(1), *plan.further_tasks()]:
        (table,) = task()
        sent.append(piece_of_row(table.to_pydict(), 0))
    assert sent == list(pieces(source, 1, SeenIds(NUM_ROWS), share))
    assert any(piece.rows is not None for piece in sent if piece)
