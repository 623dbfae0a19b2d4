"""Average precision of detections as in COCO (Lin et al. 2014, arXiv 1405.0312, and its `COCOeval`), with intervals over test images.

The scores are computed by torchmetrics. The intervals need COCO's matching separately, so it is implemented here again: the hits in an
image do not depend on other images, so a resample of images only changes their weights. With equal weights both give the same values (there
is a test). Difficult objects are COCO's crowds: a detection that covers one is neither a hit nor a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ray_sassl.evaluation import Score
from ray_sassl.evaluation.detection.voc import Truth
from ray_sassl.evaluation.intervals import LEVEL, NUM_RESAMPLES
from ray_sassl.process.errors import UsageError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100
"""Only this many detections per image and class are used, those with the highest scores."""
_RECALLS = np.linspace(0, 1, 101)
_SEED = 0
THRESHOLDS_OF = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""The thresholds that each score averages over."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections in an image.

    Attributes:
        boxes: (D, 4) float32, left, top, right and bottom edges in pixels.
        labels: (D,) int64.
        scores: (D,) float32.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def check_installed() -> None:
    """Check, before long work, that the scores can be computed.

    Raises:
        UsageError: the packages are missing.
    """
    try:
        import pycocotools  # noqa: F401
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise UsageError("detection needs torchmetrics and pycocotools: pip install 'ray-sassl[detect]'") from error


def average_precision(detections: Sequence[Detections], truths: Sequence[Truth]) -> dict[str, float]:
    """AP, AP50 and AP75 by torchmetrics, without intervals."""
    found = _torchmetrics(detections, truths, with_classes=False)
    return {name: max(0.0, found[key].item()) for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75"))}


def average_precision_scores(detections: Sequence[Detections], truths: Sequence[Truth], class_names: Sequence[str]) -> dict[str, Score]:
    """AP, AP50 and AP75 with bootstrap intervals over images, and `CLASS_AP` of each class that has test boxes."""
    found = _torchmetrics(detections, truths, with_classes=True)
    matched = [_Matched.of(detections, truths, label) for label in range(len(class_names))]
    drawn = np.stack([_resampled(matched, weights) for weights in _draws(len(truths))])
    scores = {}
    for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75")):
        scores[name] = _score(max(0.0, found[key].item()), drawn[:, :, THRESHOLDS_OF[name]].mean(2))
    by_class = dict(zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1).tolist(), strict=True))
    for label, part in enumerate(matched):
        if part.num_true.sum():
            scores[f"{class_names[label]}_AP"] = _score(by_class[label], drawn[:, label].mean(1, keepdims=True))
    return scores


def _score(value: float, drawn: np.ndarray) -> Score:
    """The score with the interval of the means over classes of resampled values (R, C); NaN means that a class was not drawn."""
    drawn = drawn[~np.isnan(drawn).all(1)]
    if not len(drawn):
        return Score(value, is_share=True)
    low, high = np.quantile(np.nanmean(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, float(low), float(high), is_share=True)


def _torchmetrics(detections: Sequence[Detections], truths: Sequence[Truth], *, with_classes: bool) -> dict[str, torch.Tensor]:
    check_installed()
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        box_format="xyxy",
        iou_type="bbox",
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        rec_thresholds=_RECALLS.tolist(),  # torchmetrics' own are float32, which changes the scores if a recall equals one of them
        class_metrics=with_classes,
        backend="pycocotools",
        sync_on_compute=False,  # the detections of all workers are already here, and the other workers do not take part
    )
    metric.warn_on_many_detections = False  # as in COCO, detections beyond the maximum are ignored
    predicted = [
        {"boxes": torch.from_numpy(one.boxes), "labels": torch.from_numpy(one.labels), "scores": torch.from_numpy(one.scores)}
        for one in detections
    ]
    wanted = [
        {
            "boxes": torch.from_numpy(truth.boxes.astype(np.float32)),
            "labels": torch.from_numpy(truth.labels),
            "iscrowd": torch.from_numpy(truth.is_difficult.astype(np.int64)),
        }
        for truth in truths
    ]
    metric.update(predicted, wanted)
    return metric.compute()


@dataclass(frozen=True, eq=False)
class _Matched:
    """The detections of one class in all images, the most confident first.

    Attributes:
        image: (D,) int64, the image of each.
        is_hit: (T, D) bool, by threshold.
        is_ignored: (T, D) bool.
        num_true: (N,) int64, objects of the class in each image, without difficult ones.
    """

    image: np.ndarray
    is_hit: np.ndarray
    is_ignored: np.ndarray
    num_true: np.ndarray

    @classmethod
    def of(cls, detections: Sequence[Detections], truths: Sequence[Truth], label: int) -> _Matched:
        parts = [_match(one, truth, label) for one, truth in zip(detections, truths, strict=True)]
        scores = np.concatenate([part[0] for part in parts])
        image = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        order = np.argsort(-scores, kind="mergesort")
        is_hit, is_ignored = (np.concatenate([part[place] for part in parts], axis=1)[:, order] for place in (1, 2))
        num_true = np.array([np.sum((truth.labels == label) & ~truth.is_difficult) for truth in truths])
        return cls(image[order], is_hit, is_ignored, num_true)


def _match(one: Detections, truth: Truth, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (D,) of an image's detections of a class from high to low, and by threshold (T, D) which are hits and which are ignored.

    Each takes the object that it overlaps most, among those that no more confident detection has taken. It takes a difficult object only if
    there is no other; a difficult object can be taken repeatedly.
    """
    mine = np.flatnonzero(one.labels == label)
    mine = mine[np.argsort(-one.scores[mine], kind="mergesort")][:MAX_DETECTIONS]
    objects = np.flatnonzero(truth.labels == label)
    objects = objects[np.argsort(truth.is_difficult[objects], kind="mergesort")]
    is_difficult = truth.is_difficult[objects]
    overlaps = _overlaps(one.boxes[mine].astype(np.float64), truth.boxes[objects], is_difficult)
    shape = (len(IOU_THRESHOLDS), len(mine))
    is_hit, is_ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, threshold in enumerate(IOU_THRESHOLDS if len(objects) else ()):
        is_free = np.ones(len(objects), bool)
        for column, overlap in enumerate(overlaps):
            best = _taken(overlap, is_free, is_difficult, threshold)
            if best is None:
                continue
            is_ignored[row, column] = is_difficult[best]
            is_hit[row, column] = not is_difficult[best]
            is_free[best] = is_difficult[best]
    return one.scores[mine], is_hit, is_ignored


def _taken(overlap: np.ndarray, is_free: np.ndarray, is_difficult: np.ndarray, threshold: float) -> int | None:
    for group in (~is_difficult, is_difficult):
        values = np.where(is_free & group, overlap, -1)
        best = values.max(initial=-1)
        if best >= min(threshold, 1 - 1e-10):
            return int(np.flatnonzero(values == best)[-1])  # as in COCO, the last of equal ones
    return None


def _overlaps(boxes: np.ndarray, objects: np.ndarray, is_difficult: np.ndarray) -> np.ndarray:
    """(D, G) intersection over union, or over the detection's own area for difficult objects."""
    near, far = np.maximum(boxes[:, None, :2], objects[None, :, :2]), np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    shared = np.clip(far - near, 0, None).prod(2)
    area, object_area = ((part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, objects))
    whole = np.where(is_difficult[None], area[:, None], area[:, None] + object_area[None] - shared)
    return shared / np.maximum(whole, 1e-12)


def _draws(num_images: int) -> np.ndarray:
    """(R, N): how often each image is in each resample."""
    return np.random.default_rng(_SEED).multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES)


def _resampled(matched: Sequence[_Matched], weights: np.ndarray) -> np.ndarray:
    """(C, T): average precision of each class at each threshold, images weighted by (N,); NaN for a class without objects."""
    return np.stack([_weighted_precision(part, weights) for part in matched])


def _weighted_precision(matched: _Matched, weights: np.ndarray) -> np.ndarray:
    """(T,): the mean over 101 recalls of the highest precision at that recall or above."""
    num_true = float(weights @ matched.num_true)
    if num_true == 0:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    weight = weights[matched.image].astype(np.float64)
    hits = np.cumsum(weight * matched.is_hit, axis=1)
    misses = np.cumsum(weight * ~(matched.is_hit | matched.is_ignored), axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    means = np.zeros(len(IOU_THRESHOLDS))
    for row, recall in enumerate(hits / num_true):
        places = np.searchsorted(recall, _RECALLS, side="left")
        reached = places < len(recall)
        means[row] = precision[row, places[reached]].sum() / len(_RECALLS)
    return means
