"""What is said of a run and the encoder that it has started from."""

from __future__ import annotations

import numpy as np
import pytest

from ray_sassl.evaluation import Evaluation, Predictions, Score
from ray_sassl.evaluation.results import STARTING_POINT
from ray_sassl.runs.pages.starting import of_evaluations

TRUTH = np.arange(1000) % 10


def _evaluation(hits: np.ndarray) -> Evaluation:
    predictions = Predictions(np.arange(len(TRUTH)), TRUTH, np.where(hits, TRUTH, (TRUTH + 1) % 10))
    return Evaluation({"top1": Score(float(hits.mean()), is_share=True), "train_top1": Score(1.0, is_share=True)}, predictions=predictions)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (60, "better by 6.0 points, 95 % 4.5 to 7.5,"),
        (-60, "worse by 6.0 points, 95 % 4.5 to 7.5,"),
        (0, "not better (+0.0 points, 95 % 0.0 to 0.0)"),
    ],
)
def test_the_difference_is_of_the_same_images(changed: int, sentence: str):
    """60 of 1,000 images: a deviation of sqrt(0.06 * 0.94 / 1000) = 0.75 points, 1.96 of which are 1.5."""
    before = np.arange(1000) < 500
    after = before.copy()
    after[slice(500, 500 + changed) if changed > 0 else slice(500 + changed, 500)] = changed > 0
    found = of_evaluations("knn", {"step 9": _evaluation(after), STARTING_POINT: _evaluation(before)})
    assert found == [f"knn top1: {sentence} than the starting point"]


def test_nothing_is_said_without_a_starting_point():
    assert of_evaluations("knn", {"step 9": _evaluation(np.ones(1000, bool))}) == []
