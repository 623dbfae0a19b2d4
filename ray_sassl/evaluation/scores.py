"""What classification protocols share: checks of features and labels, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ray_sassl.evaluation import LabeledFeatures, Predictions, Score
from ray_sassl.evaluation.intervals import mean_score, per_class_score
from ray_sassl.evaluation.rows import chunks
from ray_sassl.process.errors import UsageError

MAX_CLASSES = 2**17
"""Scores have a column for each class, so larger labels are refused; they are usually a mistake (a hash, an identifier)."""
_NAMED, _TOP = 10, 5


def check_features(train: LabeledFeatures, test: LabeledFeatures, classifier: str | None = None) -> None:
    """Checks that two sets of features fit a classifier.

    Args:
        classifier: A classifier that will be fitted, for the message if the train images have only one class.

    Raises:
        UsageError: a set is empty or not finite, its labels do not match its rows or are out of range, the widths differ, or there is only
            one class to fit.
    """
    for name, part in (("train", train), ("test", test)):
        if part.features.ndim != 2 or len(part.features) == 0:
            raise UsageError(f"the {name} features must be (N, F) with N > 0, they are {part.features.shape}")
        if part.labels.shape != part.features.shape[:1]:
            raise UsageError(f"the {name} set has {len(part.features)} features and labels of shape {part.labels.shape}")
        check_range(part.labels, f"the {name} set")
        if not all(np.isfinite(chunk).all() for chunk in chunks(part.features)):
            raise UsageError(f"the {name} features are not all finite; the backbone has diverged")
    if train.features.shape[1] != test.features.shape[1]:
        raise UsageError(f"train features are {train.features.shape[1]} wide, test features {test.features.shape[1]}")
    if classifier is not None and len(np.unique(train.labels)) < 2:
        raise UsageError(f"{classifier} needs train images of at least two classes")


def check_range(labels: np.ndarray, what: str, num_classes: int | None = None) -> None:
    """Checks that labels are class numbers.

    Args:
        what: The set that the labels belong to, for the message.
        num_classes: How many classes there are, if that is known.

    Raises:
        UsageError: a label is negative, or not below `num_classes`.
    """
    limit = MAX_CLASSES if num_classes is None else num_classes
    outside = np.unique(labels[(labels < 0) | (labels >= limit)])
    if len(outside):
        known = f"there are {limit:,} classes" if num_classes is not None else f"at most {limit:,} classes are allowed"
        raise UsageError(f"{what} has the label {_listed(outside)}; labels count from 0, and {known}")


def check_classes(train_labels: np.ndarray, test_labels: np.ndarray, class_names: tuple[str, ...] = ()) -> None:
    """Checks that labels are class numbers, and that every class of the test set can be learned.

    Args:
        class_names: The name of each label, if they are known.

    Raises:
        UsageError: a label is out of range, or a class has test images and no train images.
    """
    num_classes = len(class_names) or None
    check_range(train_labels, "the train set", num_classes)
    check_range(test_labels, "the test set", num_classes)
    missing = np.setdiff1d(test_labels, train_labels)
    if len(missing):
        named = _listed(np.array([f"{label} ({class_names[label]})" if class_names else str(label) for label in missing]))
        raise UsageError(
            f"class {named} has test images and no train images, so it can never be predicted. Are train and test of the same data set, "
            "with labels that mean the same in both?"
        )


def top1_accuracy(class_scores: Iterable[Tensor], labels: np.ndarray) -> float:
    """The share of labels (N,) that have the highest score, from blocks (n, C) of scores."""
    return float((np.concatenate([block.argmax(1).cpu().numpy() for block in class_scores]) == labels).mean())


def classification_scores(class_scores: Tensor | Iterable[Tensor], test: LabeledFeatures) -> tuple[dict[str, Score], Predictions]:
    """`top1`, `top5` if there are more than five classes, and `mean_per_class`, with intervals; and the predicted classes.

    Args:
        class_scores: (N, C), or blocks (n, C) of it in order; of equal scores the lower class is predicted, as in scikit-learn.
        test: The images with their true labels.
    """
    labels = torch.from_numpy(test.labels)
    found, hits = [], []
    begin = 0
    for block in [class_scores] if isinstance(class_scores, Tensor) else class_scores:
        found.append(block.argmax(1).cpu().numpy())
        if block.shape[1] > _TOP:
            hits.append(_is_among_top(block, labels[begin : begin + len(block)].to(block.device)).double().cpu().numpy())
        begin += len(block)
    predicted = np.concatenate(found)
    correct = (predicted == test.labels).astype(np.float64)
    scores = {"top1": mean_score(correct).as_share(chance_of(test.labels))}
    if hits:
        scores[f"top{_TOP}"] = mean_score(np.concatenate(hits)).as_share(chance_of(test.labels, _TOP))
    scores["mean_per_class"] = per_class_score(correct, test.labels).as_share(1 / len(np.unique(test.labels)))
    return scores, Predictions(test.sample_id, test.labels, predicted)


def chance_of(labels: np.ndarray, k: int = 1) -> float:
    """Top-k of always guessing the k most frequent classes of labels (N,)."""
    return float(np.sort(np.bincount(labels))[-k:].sum() / len(labels))


def evaluation_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _is_among_top(class_scores: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool: whether a label is among the classes with the highest scores (n, C)."""
    return (class_scores.topk(_TOP, dim=1).indices == labels[:, None]).any(1)


def class_name(class_names: Sequence[str], label: int) -> str:
    """The label's name, or `class 3` if classes have no names."""
    return class_names[label] if class_names else f"class {label}"


def _listed(values: np.ndarray) -> str:
    more = f" and {len(values) - _NAMED:,} more" if len(values) > _NAMED else ""
    return ", ".join(str(value) for value in values[:_NAMED]) + more
