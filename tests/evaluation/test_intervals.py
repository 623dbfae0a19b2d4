"""Confidence intervals against closed forms and a slow bootstrap."""

import numpy as np
import pytest
from scipy import stats

from ray_sassl.evaluation import Score
from ray_sassl.evaluation.intervals import bootstrap, mean_score, per_class_score, score_over_draws


def _bounds(score: Score) -> tuple[float, float]:
    assert score.low is not None
    assert score.high is not None
    return score.low, score.high


def test_the_interval_of_hits_is_the_binomial_one():
    hits = np.arange(4000) % 10 < 3
    low, high = _bounds(mean_score(hits))
    expected = stats.binom.ppf([0.025, 0.975], 4000, 0.3) / 4000
    assert (low, high) == pytest.approx(expected, abs=0.002)
    assert mean_score(hits).value == pytest.approx(0.3)


def test_counting_values_equals_drawing_images():
    hits = (np.random.default_rng(0).random(500) < 0.7).astype(float)
    slow = bootstrap(500, lambda rows: float(hits[rows].mean()))
    assert _bounds(mean_score(hits)) == pytest.approx(_bounds(slow), abs=0.006)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).normal(5, 2, 1000)
    low, high = _bounds(mean_score(values))
    error = values.std() / np.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_every_class_counts_alike_however_many_images_it_has():
    labels = np.array([0] * 900 + [1] * 100)
    hits = np.concatenate([np.ones(900), np.zeros(50), np.ones(50)])
    score = per_class_score(hits, labels)
    assert score.value == pytest.approx(0.75)
    low, high = _bounds(score)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 * np.sqrt(0.25 / 100), rel=0.15)


def test_a_perfect_score_has_an_interval_of_no_width():
    assert mean_score(np.ones(50)) == Score(1.0, 1.0, 1.0)


def test_the_interval_over_draws_is_students():
    draws = [0.1, 0.2, 0.4, 0.5]
    low, high = _bounds(score_over_draws(draws))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(draws), stats.sem(draws)))
    assert score_over_draws([0.3]) == Score(0.3)


def test_the_interval_covers_the_truth_in_about_95_of_100_test_sets():
    rng = np.random.default_rng(2)
    covered = [low <= 0.6 <= high for low, high in (_bounds(mean_score(rng.random(300) < 0.6)) for _ in range(200))]
    assert 0.9 < np.mean(covered) < 0.99
