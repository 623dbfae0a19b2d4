"""What the classification protocols have in common: their demands on features, and their scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ray_sassl.evaluate import LabelledFeatures
from ray_sassl.plugins import UsageError


def check_features(train: LabelledFeatures, test: LabelledFeatures) -> None:
    """Says what makes two sets of features unfit for a classifier.

    Raises:
        UsageError: a set is empty or not finite, its labels do not match its rows or are negative, or the widths differ.
    """
    for name, part in (("train", train), ("test", test)):
        if part.features.ndim != 2 or len(part.features) == 0:
            raise UsageError(f"the {name} features must be (N, F) with N > 0, they are {part.features.shape}")
        if part.labels.shape != part.features.shape[:1]:
            raise UsageError(f"the {name} set has {len(part.features)} features and labels of shape {part.labels.shape}")
        if part.labels.min() < 0:
            raise UsageError(f"the {name} set has the label {part.labels.min()}; labels count from 0")
        if not np.isfinite(part.features).all():
            raise UsageError(f"the {name} features are not all finite; the backbone has diverged")
    if train.features.shape[1] != test.features.shape[1]:
        raise UsageError(f"train features are {train.features.shape[1]} wide, test features {test.features.shape[1]}")


def top_k_accuracy(class_scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, and `top5` of more than five classes, as shares in [0, 1], from scores (N, C) and labels (N,)."""
    num_classes = class_scores.shape[1]
    ranking = class_scores.topk(min(5, num_classes), dim=1).indices
    hits = ranking == labels[:, None]
    accuracy = {"top1": hits[:, 0].double().mean().item()}
    if num_classes > 5:
        accuracy["top5"] = hits.any(1).double().mean().item()
    return accuracy


def evaluation_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
