"""The results of a detection job, in the form of all evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import Evaluation, Score
from ray_sassl.evaluation.detection.average_precision import average_precision_scores
from ray_sassl.evaluation.detection.pictures import boxes_picture, history_picture
from ray_sassl.evaluation.detection.training import DetectionJob, DetectionResult
from ray_sassl.evaluation.detection.voc import DetectionSet
from ray_sassl.files.storage import name_of

_NUM_SHOWN = 4


def evaluation_of(job: DetectionJob, result: DetectionResult) -> Evaluation:
    """AP, AP50 and AP75 with intervals, AP of each class, boxes on test images, and curves of the losses and of AP over the steps."""
    scores = average_precision_scores(result.detections, result.tested.truths, result.tested.class_names)
    history = result.history
    figures = {"boxes": boxes_picture(result.tested, result.detections, _NUM_SHOWN, job.config.seed)}
    if len(history.losses) > 1:
        figures["losses"] = history_picture(history.losses, "loss")
    if len(history.measured) > 1:
        figures["AP"] = history_picture(history.measured, "share")
        first = history.measured[0]
        scores["start_AP50"] = Score(first["AP50"], is_share=True)
    details: dict[str, Any] = {
        "train": _facts(job.train, result.bad["train"]),
        "test": _facts(job.test, result.bad["test"]),
        "bad_images": [{"split": split, "path": row.path, "reason": row.reason} for split, rows in result.bad.items() for row in rows],
        "classes": list(job.test.class_names),
        "losses": history.losses,
        "measured": history.measured,
    }
    return Evaluation(scores, figures, details)


def _facts(part: DetectionSet, bad: Sequence[BadRow]) -> dict[str, int]:
    return {
        "images": len(part),
        "boxes": part.num_boxes,
        "boxes_without_area_dropped": part.num_dropped,
        "images_left_out": len(bad),
    }


def detections_table(result: DetectionResult) -> pa.Table:
    """One row per detection: `image` (name), `label`, `score` and the box's edges in pixels."""
    detections = result.detections
    counts = [len(one.labels) for one in detections]
    images = [name_of(path) for path, count in zip(result.tested.paths, counts, strict=True) for _ in range(count)]
    boxes = np.concatenate([one.boxes for one in detections]).astype(np.float32)
    columns = {
        "image": pa.array(images, pa.string()),
        "label": np.concatenate([one.labels for one in detections]),
        "score": np.concatenate([one.scores for one in detections]).astype(np.float32),
    }
    return pa.table(columns | {edge: boxes[:, place] for place, edge in enumerate(("left", "top", "right", "bottom"))})
