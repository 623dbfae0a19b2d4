"""Intervals of differences hold the truth as often as they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ray_sassl.evaluation.paired import difference_of_means, paired_difference


def _hits(rng: np.random.Generator, difficulty: np.ndarray, ability: np.ndarray) -> np.ndarray:
    """(S, N) hits and misses of encoders of these abilities (S,) on images of this difficulty (N,)."""
    return rng.random((len(ability), len(difficulty))) < stats.norm.cdf(ability[:, None] - difficulty)


def _accuracy(ability: float) -> float:
    """The share of hits over all images there could be, whose difficulty is standard normal."""
    return float(stats.norm.cdf(ability / np.sqrt(2)))


@pytest.mark.parametrize("num_seeds", [1, 2, 3, 5])
def test_the_interval_covers_the_true_difference_in_about_95_of_100_test_sets(num_seeds):
    rng = np.random.default_rng(num_seeds)
    between_seeds = 0.15 if num_seeds > 1 else 0.0
    truth = _accuracy(0.4 / np.sqrt(1 + between_seeds**2 / 2)) - _accuracy(0.2 / np.sqrt(1 + between_seeds**2 / 2))
    inside = []
    for _ in range(300):
        difficulty = rng.normal(size=400)
        first, second = (_hits(rng, difficulty, rng.normal(mean, between_seeds, num_seeds)) for mean in (0.2, 0.4))
        found = paired_difference(first, second)
        inside.append(found.low <= truth <= found.high)
        assert found.covers_seeds == (num_seeds > 1)
    assert 0.92 <= np.mean(inside) <= 1.0 if num_seeds > 1 else 0.92 <= np.mean(inside) <= 0.98


def test_equal_recipes_differ_significantly_in_about_5_of_100_comparisons():
    rng = np.random.default_rng(10)
    called = []
    for _ in range(1000):
        difficulty = rng.normal(size=500)
        first, second = (_hits(rng, difficulty, np.array([0.3])) for _ in range(2))
        called.append(not paired_difference(first, second).is_noise)
    assert 0.03 <= np.mean(called) <= 0.07


def test_a_clear_difference_is_called_one():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=2000)
    found = paired_difference(_hits(rng, difficulty, np.array([0.0])), _hits(rng, difficulty, np.array([0.3])))
    assert not found.is_noise
    assert 0 < found.low < found.value < found.high


def test_pairing_sees_what_two_separate_intervals_do_not():
    rng = np.random.default_rng(2)
    first = rng.random(1000) < 0.6
    second = first.copy()
    second[np.flatnonzero(~first)[:15]] = True  # better on 15 images, worse on none
    found = paired_difference(first, second)
    assert not found.is_noise
    assert found.value == pytest.approx(0.015)
    assert 1.96 * np.sqrt(2 * 0.6 * 0.4 / 1000) > found.value  # apart, the two shares could not be told from each other


def test_an_encoder_against_itself_is_within_noise():
    hits = np.random.default_rng(3).random((2, 300)) < 0.7
    assert paired_difference(hits[:1], hits[:1]) == paired_difference(hits[0], hits[0])
    found = paired_difference(hits[:1], hits[:1])
    assert (found.value, found.low, found.high, found.is_noise) == (0.0, 0.0, 0.0, True)
    assert paired_difference(hits, hits).is_noise


def test_varying_seeds_widen_the_interval_even_if_only_one_side_has_several():
    rng = np.random.default_rng(4)
    difficulty = rng.normal(size=1000)
    first = _hits(rng, difficulty, np.array([0.0, 0.2, 0.4]))
    second = _hits(rng, difficulty, np.array([0.35]))
    alone = paired_difference(first[1], second)
    with_seeds = paired_difference(first, second)
    assert with_seeds.covers_seeds
    assert with_seeds.high - with_seeds.low > 3 * (alone.high - alone.low)


def test_classes_count_alike_and_the_interval_is_that_of_the_standard_errors():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [900, 100])
    first, second = (rng.random(1000) < share for share in (0.5, np.where(labels == 0, 0.5, 0.8)))
    found = paired_difference(first, second, labels)
    difference = second.astype(float) - first
    parts = [difference[labels == label] for label in (0, 1)]
    assert found.value == pytest.approx(np.mean([part.mean() for part in parts]))
    error = np.sqrt(sum(part.var() / len(part) for part in parts)) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_figures_of_seeds_give_students_interval_of_equal_variances():
    first, second = np.array([0.50, 0.52, 0.51]), np.array([0.55, 0.57])
    expected = stats.ttest_ind(second, first).confidence_interval()
    found = difference_of_means(first, second)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=4e-4)
    assert difference_of_means(first[:1], second[:1]) is None
