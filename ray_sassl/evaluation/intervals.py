"""Confidence intervals of scores.

Over test images by the percentile bootstrap (Efron 1979, "Bootstrap methods: another look at the jackknife"; Efron and Tibshirani 1993, "An
Introduction to the Bootstrap", chapter 13): the images are resampled with replacement, and the interval holds the middle 95 % of the
scores. It says how far the score would move on other test images, not on another training run. Over random draws by Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ray_sassl.evaluation import Score

LEVEL = 0.95
NUM_RESAMPLES = 1000
_SEED = 0


def mean_score(values: np.ndarray) -> Score:
    """The mean of (N,) values, one per image, with its bootstrap interval.

    How often value v occurs in a resample of N images is a multinomial draw, so if few values occur (hits and misses) their counts are
    drawn instead of the images: the same distribution, and fast for a million images.
    """
    values = np.asarray(values, np.float64)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 16:
        draws = np.random.default_rng(_SEED).multinomial(len(values), counts / len(values), NUM_RESAMPLES)
        return _score(float(values.mean()), draws @ distinct / len(values))
    return bootstrap(len(values), lambda rows: float(values[rows].mean()))


def per_class_score(values: np.ndarray, labels: np.ndarray) -> Score:
    """The mean over classes of each class's mean of (N,) values; images are resampled within their class, so that none becomes empty."""
    rng = np.random.default_rng(_SEED)
    total, resampled = 0.0, np.zeros(NUM_RESAMPLES)
    classes = np.unique(labels)
    for label in classes:
        distinct, counts = np.unique(np.asarray(values[labels == label], np.float64), return_counts=True)
        size = counts.sum()
        total += float(distinct @ counts / size)
        resampled += rng.multinomial(size, counts / size, NUM_RESAMPLES) @ distinct / size
    return _score(total / len(classes), resampled / len(classes))


def bootstrap(num: int, statistic: Callable[[np.ndarray], float], num_resamples: int = NUM_RESAMPLES) -> Score:
    """A statistic of N images, given as a function of the rows (N,) int64 that it looks at, with its bootstrap interval."""
    rng = np.random.default_rng(_SEED)
    draws = [statistic(rng.integers(0, num, num)) for _ in range(num_resamples)]
    return _score(statistic(np.arange(num)), np.asarray(draws))


def score_over_draws(values: Sequence[float]) -> Score:
    """The mean of independent draws with Student's interval; without an interval if there is only one draw."""
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return Score(mean)
    from scipy.special import stdtrit  # half a second, which verbs that draw or show something do not need

    half = float(stdtrit(num - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(num))
    return Score(mean, mean - half, mean + half)


def _score(value: float, resampled: np.ndarray) -> Score:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, float(low), float(high))
