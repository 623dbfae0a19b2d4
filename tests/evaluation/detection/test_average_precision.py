"""Average precision: that of pycocotools, fed by hand, on the same detections."""

import contextlib
import io

import numpy as np
import pytest

from ray_sassl.evaluation.detection.average_precision import (
    THRESHOLDS_OF,
    Detections,
    _Matched,
    _resampled,
    average_precision,
    average_precision_scores,
)
from ray_sassl.evaluation.detection.voc import Truth

CLASSES = ("cat", "dog", "owl")
Case = tuple[list[Detections], list[Truth]]


def _case(seed: int, num_images: int = 40, difficult_share: float = 0.2) -> Case:
    """Objects, and detections that are shifted copies of most of them, with doubles, false alarms and equal scores."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(num_images):
        num = rng.integers(0, 7)
        corner = rng.uniform(0, 150, (num, 2)).round()
        boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (num, 2)).round()], 1)
        labels = rng.integers(0, 3, num)
        truths.append(Truth(boxes, labels, rng.random(num) < difficult_share))
        chosen = np.repeat(np.arange(num), rng.integers(0, 3, num))
        alarms = rng.integers(0, 4)
        found = np.concatenate([boxes[chosen] + rng.normal(0, 3, (len(chosen), 4)), rng.uniform(0, 100, (alarms, 4))])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
        found_labels = np.where(rng.random(len(found)) < 0.9, np.concatenate([labels[chosen], rng.integers(0, 3, alarms)]), 1)
        detections.append(Detections(found.astype(np.float32), found_labels, rng.random(len(found)).round(2).astype(np.float32)))
    return detections, truths


def _by_pycocotools(detections: list[Detections], truths: list[Truth]) -> tuple[np.ndarray, list[float]]:
    """AP, AP50 and AP75, and AP by class, from COCO's own program and form."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(part, **extra):
        for image, one in enumerate(part):
            for row, (left, top, right, bottom) in enumerate(one.boxes.astype(np.float64).tolist()):
                width, height = right - left, bottom - top
                yield {
                    "image_id": image + 1,
                    "category_id": int(one.labels[row]) + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                } | {key: get(one, row) for key, get in extra.items()}

    truth = list(rows(truths, iscrowd=lambda one, row: int(one.is_difficult[row])))
    for number, entry in enumerate(truth):
        entry["id"] = number + 1
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image + 1} for image in range(len(truths))],
        "categories": [{"id": label + 1} for label in range(3)],
        "annotations": truth,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        found = coco.loadRes(list(rows(detections, score=lambda one, row: float(one.scores[row]))))
        evaluator = COCOeval(coco, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
    return evaluator.stats[:3], [float(precision[:, :, label].mean()) for label in range(3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("difficult_share", [0.0, 0.3])
def test_average_precision_is_that_of_pycocotools(seed, difficult_share):
    detections, truths = _case(seed, difficult_share=difficult_share)
    expected, by_class = _by_pycocotools(detections, truths)
    scores = average_precision_scores(detections, truths, CLASSES)
    np.testing.assert_allclose([scores[name].value for name in THRESHOLDS_OF], expected, atol=1e-6)
    np.testing.assert_allclose([scores[f"{name}_AP"].value for name in CLASSES], by_class, atol=1e-6)
    np.testing.assert_allclose(list(average_precision(detections, truths).values()), expected, atol=1e-6)
    assert 0.1 < expected[0] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_the_matching_behind_the_intervals_gives_the_same_figures(seed):
    detections, truths = _case(seed, difficult_share=0.3)
    expected, by_class = _by_pycocotools(detections, truths)
    table = _resampled([_Matched.of(detections, truths, label) for label in range(3)], np.ones(len(truths), np.int64))
    np.testing.assert_allclose([table[:, part].mean() for part in THRESHOLDS_OF.values()], expected, atol=1e-9)
    np.testing.assert_allclose(table.mean(1), by_class, atol=1e-9)


def test_an_image_of_weight_two_counts_as_two_images():
    detections, truths = _case(0, num_images=12)
    weights = np.random.default_rng(1).integers(0, 3, 12)
    rows = np.repeat(np.arange(12), weights)
    weighted = _resampled([_Matched.of(detections, truths, label) for label in range(3)], weights)
    repeated = [_Matched.of([detections[row] for row in rows], [truths[row] for row in rows], label) for label in range(3)]
    np.testing.assert_allclose(weighted, _resampled(repeated, np.ones(len(rows), np.int64)), atol=0.03)


def test_intervals_hold_the_figure_and_shrink_with_more_images():
    widths = []
    for num in (20, 200):
        scores = average_precision_scores(*_case(3, num_images=num), CLASSES)
        assert all(score.low <= score.value + 0.02 and score.value - 0.02 <= score.high for score in scores.values())
        widths.append(scores["AP50"].high - scores["AP50"].low)
    assert widths[1] < 0.5 * widths[0]


def test_perfect_detections_score_1_and_none_score_0():
    _, truths = _case(0)
    perfect = [Detections(truth.boxes.astype(np.float32), truth.labels, np.ones(len(truth.labels), np.float32)) for truth in truths]
    assert average_precision(perfect, truths) == {"AP": 1, "AP50": 1, "AP75": 1}
    nothing = [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in truths]
    assert average_precision(nothing, truths) == {"AP": 0, "AP50": 0, "AP75": 0}
    scores = average_precision_scores(nothing, truths, CLASSES)
    assert scores["AP"].value == scores["AP"].high == 0
