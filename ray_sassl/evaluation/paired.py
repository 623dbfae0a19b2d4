"""Differences between two encoders, or two groups of encoders that differ only in their seed, evaluated on the same test images.

Over images by the paired bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 16.4; Koehn 2004, "Statistical
significance tests for machine translation evaluation", for its use on two systems and one test set): images are resampled with replacement,
the same ones for both sides, so that what makes an image hard for both cancels out.

Over seeds by draws from Student's t, since resampling two or three trainings does not show how others would come out. Both sides are
assumed to vary alike between seeds, so the spread of one is used for the other if that has a single seed. The spread over seeds on one test
set contains part of the chance that the resampling of images counts too, so with seeds the interval is a little too wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ray_sassl.evaluation import Score
from ray_sassl.evaluation.intervals import LEVEL

NUM_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Difference:
    """The second side's mean minus the first's, with its 95 % interval.

    Attributes:
        value: The difference.
        low: Lower end of the interval.
        high: Upper end of the interval.
        covers_seeds: Whether the interval covers other training runs of both; otherwise only these encoders on other test images.
    """

    value: float
    low: float
    high: float
    covers_seeds: bool

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


def paired_difference(first: np.ndarray, second: np.ndarray, labels: np.ndarray | None = None) -> Difference:
    """The difference of means over images and seeds.

    Args:
        first: (S1, N) values such as hits, one row per seed, one column per image.
        second: (S2, N), of the same images.
        labels: (N,) int64. If given, the value is the mean over classes of each class's mean, and images are resampled within their class.
    """
    first, second = (np.atleast_2d(np.asarray(side, np.float64)) for side in (first, second))
    weights = _weights(first.shape[1], labels)
    by_image = second.mean(0) - first.mean(0)
    value = float(weights @ by_image)
    rng = np.random.default_rng(_SEED)
    draws = _resampled(by_image, labels, rng) - value
    error, degrees = seed_error([side @ weights for side in (first, second)])
    if degrees:
        draws = draws + error * rng.standard_t(degrees, len(draws))
    return _difference(value, draws, covers_seeds=degrees > 0)


def mean_over_seeds(side: np.ndarray, labels: np.ndarray | None = None) -> Score:
    """The mean of values (S, N) over images and seeds, with its interval over both; see `paired_difference`."""
    side = np.atleast_2d(np.asarray(side, np.float64))
    weights = _weights(side.shape[1], labels)
    value = float(weights @ side.mean(0))
    rng = np.random.default_rng(_SEED)
    draws = _resampled(side.mean(0), labels, rng) - value
    error, degrees = seed_error([side @ weights])
    if degrees:
        draws = draws + error * rng.standard_t(degrees, len(draws))
    found = _difference(value, draws, covers_seeds=degrees > 0)
    return Score(found.value, found.low, found.high)


def difference_of_means(first: np.ndarray, second: np.ndarray) -> Difference | None:
    """The difference of the means of values, one per seed, (S1,) and (S2,); None if neither side has two seeds."""
    error, degrees = seed_error([np.asarray(side, np.float64) for side in (first, second)])
    if not degrees:
        return None
    value = float(np.mean(second) - np.mean(first))
    draws = error * np.random.default_rng(_SEED).standard_t(degrees, 50 * NUM_RESAMPLES)
    return _difference(value, draws, covers_seeds=True)


def seed_error(sides: list[np.ndarray]) -> tuple[float, int]:
    """The standard error over seeds of the sides' mean, or of the difference of two, by their pooled spread; and its degrees of freedom."""
    degrees = sum(len(side) - 1 for side in sides)
    if not degrees:
        return 0.0, 0
    pooled = sum(float(((side - side.mean()) ** 2).sum()) for side in sides) / degrees
    return float(np.sqrt(pooled * sum(1 / len(side) for side in sides))), degrees


def _weights(num: int, labels: np.ndarray | None) -> np.ndarray:
    """(N,) shares of the images in the mean."""
    if labels is None:
        return np.full(num, 1 / num)
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (counts[places] * len(counts))


def _resampled(values: np.ndarray, labels: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """(R,) means of (N,) values over resampled images, by class if labels are given."""
    classes = [values] if labels is None else [values[labels == label] for label in np.unique(labels)]
    total = np.zeros(NUM_RESAMPLES)
    for part in classes:
        # Few values occur, so how often each is drawn says as much as which images are; rounding joins sums that differ in their last bit.
        distinct, counts = np.unique(part.round(12), return_counts=True)
        if len(distinct) <= 64:
            total += rng.multinomial(len(part), counts / len(part), NUM_RESAMPLES) @ distinct / len(part)
        else:
            total += np.array([part[rng.integers(0, len(part), len(part))].mean() for _ in range(NUM_RESAMPLES)])
    return total / len(classes)


def _difference(value: float, deviations: np.ndarray, *, covers_seeds: bool) -> Difference:
    low, high = np.quantile(deviations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, value + float(low), value + float(high), covers_seeds)
