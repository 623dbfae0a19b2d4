"""The difference of a score between two sides, with the best interval that what was kept of both allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ray_sassl.evaluation.paired import Difference, difference_of_means, paired_difference
from ray_sassl.evaluation.results import ProtocolScores
from ray_sassl.files.json_files import as_mapping, as_number

_PER_CLASS, _FROM_PREDICTIONS = "mean_per_class", ("top1", "mean_per_class")
"""Suffixes of scores that may be computed from the predicted classes, and so can be compared image by image."""

Verdict = Literal["higher", "lower", "noise", "unknown"]


@dataclass(frozen=True)
class Contrast:
    """The second side's value minus the first's.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval, or None without an interval.
        high: Upper end of the interval.
        basis: How the interval was computed.
        verdict: "noise" if zero is in the interval; "unknown" if there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    basis: str
    verdict: Verdict


def described(contrast: Contrast, *, is_share: bool) -> str:
    """A difference in words; for shares in percentage points."""
    scale, unit, digits = (100, " points", 2) if is_share else (1, "", 4)

    def text(value: float) -> str:
        return f"{value * scale:+.{digits}f}"

    if contrast.low is None or contrast.high is None:
        return f"{text(contrast.value)}{unit}, no interval"
    within = f"{text(contrast.value)}{unit} [{text(contrast.low)}, {text(contrast.high)}]"
    return f"within noise: {within}" if contrast.verdict == "noise" else f"{contrast.verdict}: {within}"


def contrast_of(name: str, first: Sequence[ProtocolScores], second: Sequence[ProtocolScores]) -> Contrast:
    """The contrast by the best method that both sides allow: image by image, draw by draw, over seeds, or from their two intervals."""
    units = units_of(name, [*first, *second])
    one, other = (np.array([scores.scores[name].value for scores in side]) for side in (first, second))
    if units is not None:
        what = "test images" if _is_of_predictions(name, first[0]) else "draws"
        found = paired_difference(units[: len(first)], units[len(first) :], labels_of(name, first))
        return _called(found, f"paired over {what}" + (" and over seeds" if found.covers_seeds else ""))
    if (over_seeds := difference_of_means(one, other)) is not None:
        return _called(over_seeds, "over seeds")
    value = float(other.mean() - one.mean())
    a, b = first[0].scores[name], second[0].scores[name]
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Contrast(value, None, None, "no interval", "unknown")
    down, up = float(np.hypot(b.value - b.low, a.high - a.value)), float(np.hypot(b.high - b.value, a.value - a.low))
    return _called(Difference(value, value - down, value + up, covers_seeds=False), "from the two intervals, not paired")


def _called(found: Difference, basis: str) -> Contrast:
    verdict: Verdict = "noise" if found.is_noise else "higher" if found.value > 0 else "lower"
    return Contrast(found.value, found.low, found.high, basis, verdict)


def units_of(name: str, all_scores: Sequence[ProtocolScores]) -> np.ndarray | None:
    """(S, N) values of test images or draws that can be paired and whose mean is the score; None if there are none."""
    if all(_is_of_predictions(name, scores) for scores in all_scores):
        return np.stack([scores.predictions.correct for scores in all_scores if scores.predictions is not None])
    draws = [_by_draw(name, scores) for scores in all_scores]
    lengths = {len(part) for part in draws}
    return np.array(draws, np.float64) if len(lengths) == 1 and lengths != {0} else None


def _is_of_predictions(name: str, scores: ProtocolScores) -> bool:
    """Whether the score is computed from the kept predictions; a protocol may have other scores, whose predictions are not kept."""
    if scores.predictions is None or not name.endswith(_FROM_PREDICTIONS):
        return False
    correct, labels = scores.predictions.correct.astype(np.float64), scores.predictions.labels
    if name.endswith(_PER_CLASS):
        correct = np.array([correct[labels == label].mean() for label in np.unique(labels)])
    return abs(float(correct.mean()) - scores.scores[name].value) < 1e-9


def _by_draw(name: str, scores: ProtocolScores) -> list[float]:
    """`few_shot` keeps `5_shot_top1` as the mean of `details["5_shot"]["top1_by_draw"]`."""
    part, _, kind = name.rpartition("_")
    draws = as_mapping(scores.details.get(part)).get(f"{kind}_by_draw")
    return [value for value in draws if as_number(value) is not None] if isinstance(draws, list) else []


def labels_of(name: str, group: Sequence[ProtocolScores]) -> np.ndarray | None:
    predictions = group[0].predictions
    return predictions.labels if name.endswith(_PER_CLASS) and predictions is not None else None
