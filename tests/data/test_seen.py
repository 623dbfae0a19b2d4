import base64
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sassl.data.seen import SeenIds

NUM_ROWS = 13
KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, NUM_ROWS - 1)), max_size=80)
FEW = settings(max_examples=50, deadline=None)


def _seen(keys: list[tuple[int, int]], num_rows: int = NUM_ROWS) -> SeenIds:
    seen = SeenIds(num_rows)
    pairs = np.array(keys, np.int64).reshape(-1, 2)
    seen.add(pairs[:, 0], pairs[:, 1])
    return seen


def _keys(seen: SeenIds) -> set[tuple[int, int]]:
    every = np.arange(seen.num_rows)
    return {(epoch, int(row)) for epoch in range(4) for row in every[~seen.unseen(epoch, every)]}


@FEW
@given(KEYS)
def test_it_holds_exactly_what_was_added(keys):
    seen = _seen(keys)
    assert _keys(seen) == set(keys)
    for epoch in range(4):
        rows = {row for number, row in keys if number == epoch}
        assert seen.count(epoch) == len(rows)
        assert seen.is_touched(epoch) == bool(rows)


@FEW
@given(KEYS, KEYS)
def test_a_merged_record_holds_what_either_has_seen(one, other):
    merged = _seen(one)
    merged.merge([_seen(other), merged])
    assert _keys(merged) == set(one) | set(other)


@FEW
@given(KEYS)
def test_a_record_survives_a_checkpoint(keys):
    assert _keys(SeenIds.decode(_seen(keys).encode())) == _keys(pickle.loads(pickle.dumps(_seen(keys)))) == set(keys)


@FEW
@given(KEYS, KEYS)
def test_a_copy_does_not_change_with_the_record(keys, more):
    seen = _seen(keys)
    copy = seen.copy()
    seen.merge([_seen(more)])
    assert _keys(copy) == set(keys)


def test_halves_seen_by_two_ranks_make_a_complete_epoch():
    halves = [_seen([(0, row) for row in range(first, NUM_ROWS, 2)]) for first in (0, 1)]
    halves[0].merge(halves)
    assert json.loads(halves[0].encode()) == {"num_rows": NUM_ROWS, "complete": [[0, 0]], "missing": [], "open": {}}


def test_a_complete_epoch_stays_complete():
    seen = _seen([(0, row) for row in range(NUM_ROWS)])
    seen.add(np.zeros(3, np.int64), np.arange(3))
    seen.merge([_seen([(0, 2)])])
    assert json.loads(seen.encode()) == {"num_rows": NUM_ROWS, "complete": [[0, 0]], "missing": [], "open": {}}
    assert not seen.unseen(0, np.arange(NUM_ROWS)).any()


def test_a_batch_may_hold_rows_of_two_epochs():
    seen = SeenIds(4)
    seen.add(np.array([0, 0, 1, 1]), np.array([2, 3, 0, 2]))
    assert seen.unseen(0, np.arange(4)).tolist() == [True, True, False, False]
    assert seen.unseen(1, np.arange(4)).tolist() == [False, True, False, True]


@pytest.mark.parametrize(("missing", "limit_bytes"), [(0, 100), (3, 10_000)])
def test_an_epoch_of_imagenet_costs_little_in_a_checkpoint(missing, limit_bytes):
    num_rows = 1_281_167
    seen = SeenIds(num_rows)
    seen.add(np.zeros(num_rows - missing, np.int64), np.arange(num_rows - missing))
    assert len(seen.encode()) < limit_bytes


@FEW
@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)), st.lists(st.integers(0, 199), max_size=8))
def test_lists_of_missing_rows_and_bitmaps_merge_alike(one, other, more):
    records = [_seen([(0, row) for row in range(200) if row not in missing], 200) for missing in (one, other)]
    assert records[0].count(0) == 200 - len(one)
    records[0].merge(records[1:])
    records[0].add(np.zeros(len(more), np.int64), np.array(more, np.int64))
    unseen = (one & other) - set(more)
    for record in (records[0], SeenIds.decode(records[0].encode())):
        assert set(np.flatnonzero(record.unseen(0, np.arange(200)))) == (unseen if record.is_touched(0) else set(range(200)))
        assert record.count(0) == 200 - len(unseen)
    assert records[0].encode() == _seen([(0, row) for row in range(200) if row not in unseen], 200).encode()


@pytest.mark.parametrize("num_rows", [200, 203])
def test_a_record_from_before_there_were_lists_is_read(num_rows):
    bitmaps = {3: np.arange(num_rows) != 7, 5: np.arange(num_rows) < 50}
    packed = {epoch: base64.b64encode(zlib.compress(np.packbits(bitmap).tobytes(), 1)).decode() for epoch, bitmap in bitmaps.items()}
    seen = SeenIds.decode(json.dumps({"num_rows": num_rows, "complete": [0, 1, 2], "open": packed}).encode())
    assert [seen.count(epoch) for epoch in range(7)] == [num_rows] * 3 + [num_rows - 1, 0, 50, 0]
    for epoch, bitmap in bitmaps.items():
        np.testing.assert_array_equal(seen.unseen(epoch, np.arange(num_rows)), ~bitmap)
    assert SeenIds.decode(seen.encode()).encode() == seen.encode()


def _with_bad_rows(num_rows: int, epochs: int, bad: np.ndarray) -> SeenIds:
    seen = SeenIds(num_rows)
    good = np.setdiff1d(np.arange(num_rows), bad)
    for epoch in range(epochs):
        for part in np.array_split(good, 4):
            seen.add(np.full(len(part), epoch), part)
    return seen


def test_bad_rows_cost_the_same_however_many_epochs_lack_them():
    bad = np.random.default_rng(0).permutation(50_000)[:100]
    few, many = (_with_bad_rows(50_000, epochs, bad) for epochs in (2, 40))
    assert few.num_bytes() == many.num_bytes() == 4 * len(bad)
    assert len(many.encode()) - len(few.encode()) < 5, "the number of the last epoch"
    assert len(pickle.dumps(many)) - len(pickle.dumps(few)) < 5
    merged = SeenIds(50_000)
    merged.merge([many, SeenIds.decode(many.encode())])
    assert merged.num_bytes() == SeenIds.decode(many.encode()).num_bytes() == 4 * len(bad)
    assert many.copy().num_bytes() == 4 * len(bad)


def test_an_open_epoch_costs_a_bit_a_row_and_rows_that_only_some_epochs_lack_four_bytes():
    seen = SeenIds(50_000)
    seen.add(np.zeros(25_000, np.int64), np.arange(25_000))
    assert seen.num_bytes() == 50_000 / 8
    for epoch in range(1, 21):
        seen.add(np.full(49_900, epoch), np.delete(np.arange(50_000), np.arange(epoch, epoch + 100)))
    assert seen.num_bytes() == 50_000 / 8 + 20 * 400


def test_half_an_epoch_of_imagenet_costs_its_bitmap():
    num_rows = 1_281_167
    half = np.random.default_rng(0).permutation(num_rows)[: num_rows // 2]
    seen = SeenIds(num_rows)
    seen.add(np.zeros(len(half), np.int64), half)
    assert len(seen.encode()) < 217_000, "160 kB, and a third more in base64"
