"""A linear classifier on the frozen encoder: multinomial logistic regression by L-BFGS, as a layer on unstandardized features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.data.reading import build_index, each_group
from ray_sassl.evaluation.apart import check_train_and_test
from ray_sassl.evaluation.logistic import fit_lbfgs
from ray_sassl.evaluation.rows import Rows, moments
from ray_sassl.exporting.embedding import Embedder
from ray_sassl.process.errors import UsageError


@dataclass(frozen=True)
class LinearHead:
    """A fitted classifier.

    Attributes:
        layer: (B, F) -> (B, C).
        classes: The classes' names, if the data set has names.
        num_train, train_top1: Number of train images, and top-1 on them.
        num_test, test_top1: Number of test images, and top-1 on them; None without test images.
    """

    layer: nn.Linear
    classes: tuple[str, ...]
    num_train: int
    train_top1: float
    num_test: int | None = None
    test_top1: float | None = None


def fit_head(embedder: Embedder, train: DataConfig, test: DataConfig | None, l2: float = 1e-4, max_iterations: int = 500) -> LinearHead:
    """The classifier that minimizes mean cross-entropy + l2 / 2 times the squared weights on standardized features of the train images.

    Standardization is folded into the layer's weights afterward, so the layer takes the encoder's features unchanged.

    Raises:
        UsageError: the two are the same images, a set has no labels, or a class no train images.
        TooManyBadRowsError: more images cannot be decoded than `max_bad_fraction` of their data allows.
    """
    if test is not None:
        check_train_and_test(train, test)
    x, labels, classes = _labeled(embedder, train)
    num_classes = max(len(classes), int(labels.max()) + 1)
    if len(missing := np.setdiff1d(np.arange(num_classes), labels)):
        raise UsageError(
            f"{', '.join(train.paths)} has no images of class {missing[0]}, so no classifier of {num_classes} classes can be fitted"
        )
    if num_classes < 2:
        raise UsageError(f"{', '.join(train.paths)} has images of one class only; a classifier needs two")
    layer = fit_layer(x, labels, l2, max_iterations)
    result = LinearHead(layer, classes, len(labels), _top1(layer, x, labels))
    if test is None:
        return result
    x_test, test_labels, _ = _labeled(embedder, test)
    return LinearHead(layer, classes, len(labels), result.train_top1, len(test_labels), _top1(layer, x_test, test_labels))


def fit_layer(x: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int) -> nn.Linear:
    """The layer for features (N, F) and labels (N,) in 0 to C - 1, each of which occurs."""
    mean, deviation = moments(x)
    weight, bias, _ = fit_lbfgs(Rows(x, (mean, deviation)), labels, l2, max_iterations)
    weight = weight / deviation
    bias = bias - weight @ mean
    layer = nn.Linear(x.shape[1], len(bias))
    layer.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})
    return layer


def _labeled(embedder: Embedder, config: DataConfig) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Features (N, F), labels (N,) and class names of the images that have a label."""
    index = build_index(config)
    quarantine = Quarantine(index.num_rows, config.max_bad_fraction)
    quarantine.add(index.problems)
    features, labels = [], []
    for rows in each_group(index, range(index.num_groups)):
        rows = rows.take(rows.sample_id[rows.label != NO_LABEL]) if len(rows) else rows
        good, part, bad = embedder.embed(rows, config.max_pixels)
        quarantine.add(bad)
        features.append(part)
        labels.append(rows.label[good])
    joined = np.concatenate(labels)
    if not len(joined):
        raise UsageError(f"{', '.join(config.paths)} has no labeled images (label_column={config.label_column!r}); a classifier needs them")
    if joined.min() < 0:
        raise UsageError(f"{', '.join(config.paths)} has the label {joined.min()}; labels count from 0")
    return np.concatenate(features), joined, index.class_names


@torch.inference_mode()
def _top1(layer: nn.Linear, x: np.ndarray, labels: np.ndarray) -> float:
    return float((layer(torch.from_numpy(x)).argmax(1).numpy() == labels).mean())
