from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ray_sassl.views.keyed import MAX_VIEWS, DrawKey, Stream, philox4x32

# The known answers of Random123's own tests for philox4x32, 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox4x32((c0, c1, c2, c3), key)) == answer


def test_a_draw_is_the_generators_word_for_its_key():
    key = DrawKey(seed=7 + (9 << 32), epoch=3, sample_id=np.array([5 + (2 << 32)]), view=6)
    counter = [np.array([word], np.uint64) for word in (1 | (512 + 6) << 16, 3, 5, 2)]
    words = np.concatenate(philox4x32((counter[0], counter[1], counter[2], counter[3]), (7, 9)))
    np.testing.assert_array_equal(key.uniform(Stream.STYLE_PARTNER, 8)[0, 4:], words / 2**32)


def test_draws_of_a_sample_do_not_depend_on_the_batch_or_its_order():
    ids = np.array([7, 3, 2**40, 0])
    together = DrawKey(5, 2, ids).uniform(Stream.VIEW, 10)
    for row, sample_id in enumerate(ids):
        np.testing.assert_array_equal(DrawKey(5, 2, np.array([sample_id])).uniform(Stream.VIEW, 10)[0], together[row])


def test_asking_for_more_draws_leaves_the_first_ones_as_they_are():
    key = DrawKey(1, 0, np.arange(5))
    np.testing.assert_array_equal(key.uniform(Stream.VIEW, 30)[:, :7], key.uniform(Stream.VIEW, 7))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"view": 1}, {"seed": 1 + 2**32}])
def test_seed_epoch_and_view_each_change_the_draws(other):
    key = DrawKey(1, 0, np.arange(50))
    assert not np.isin(replace(key, **other).uniform(Stream.VIEW, 8), key.uniform(Stream.VIEW, 8)).any()


@pytest.mark.parametrize("view", [0, 3])
def test_every_stream_has_draws_of_its_own(view):
    draws = [DrawKey(1, 0, np.arange(50), view).uniform(stream, 8) for stream in Stream]
    assert len(np.unique(draws)) == len(Stream) * 50 * 8


def test_epochs_may_differ_within_a_batch():
    mixed = DrawKey(1, np.array([3, 4]), np.array([9, 9])).uniform(Stream.VIEW, 4)
    np.testing.assert_array_equal(mixed[1], DrawKey(1, 4, np.array([9])).uniform(Stream.VIEW, 4)[0])


def test_every_view_has_streams_of_its_own_whose_numbers_never_change():
    assert [Stream.VIEW, Stream.STYLE, Stream.STYLE_PARTNER] == [0, 256, 512]  # the views of runs that are resumed follow from them
    streams = [stream + view for stream in Stream for view in range(MAX_VIEWS)]
    assert len(set(streams)) == len(streams)


def test_draws_are_uniform_in_the_unit_interval():
    draws = DrawKey(0, 0, np.arange(5000)).uniform(Stream.VIEW, 24)
    assert draws.min() >= 0
    assert draws.max() < 1
    shares, _ = np.histogram(draws, bins=20, range=(0, 1))
    expected = draws.size / 20
    assert ((shares - expected) ** 2 / expected).sum() < 45  # chi-squared with 19 degrees of freedom: one in a thousand is above 43.8
    assert abs(np.corrcoef(draws.T) - np.eye(24)).max() < 0.07


def test_normal_draws_are_standard_normal():
    draws = DrawKey(3, 0, np.arange(4000), 7).normal(Stream.VIEW, 25)
    assert draws.shape == (4000, 25)
    assert draws.mean() == pytest.approx(0, abs=0.01)
    assert draws.var() == pytest.approx(1, abs=0.02)
    assert (draws**4).mean() == pytest.approx(3, abs=0.15)
    assert np.abs(np.corrcoef(draws.T) - np.eye(25)).max() < 0.08


def test_normal_draws_do_not_depend_on_how_many_are_asked_for():
    key = DrawKey(3, 0, np.arange(5), 7)
    np.testing.assert_array_equal(key.normal(Stream.VIEW, 9)[:, :4], key.normal(Stream.VIEW, 4))
