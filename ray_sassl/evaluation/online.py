"""Scores of an encoder during its training, on a part of the evaluation data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import FixedFeatures
from ray_sassl.evaluation.datasets import LabeledImages
from ray_sassl.evaluation.features import extract_features
from ray_sassl.evaluation.protocols.knn import Config as KnnConfig
from ray_sassl.evaluation.protocols.linear import Config as LinearConfig

log = logging.getLogger(__name__)

_UNSEEN_SHARE = 0.02

ONLINE_SCORES: dict[str, KnnConfig | LinearConfig] = {"knn": KnnConfig(), "linear": LinearConfig()}
"""The choices of `evaluate.online`; each is logged as NAME_top1."""


def online_scores(config: ExperimentConfig, device: torch.device) -> Callable[[nn.Module], dict[str, float]] | None:
    """A function that scores a backbone as `evaluate.online` says on a part of the evaluation data, or None if none are configured."""
    if config.evaluate.train is None or config.evaluate.test is None:
        return None
    splits = [
        LabeledImages(data, config.evaluate.size_px, config.evaluate.online_rows) for data in (config.evaluate.train, config.evaluate.test)
    ]
    mean, std = config.train.pixel_mean, config.train.pixel_std

    names = list(ONLINE_SCORES) if config.evaluate.online == "both" else [config.evaluate.online]

    def scores(backbone: nn.Module) -> dict[str, float]:
        train, test = (extract_features(backbone, images, mean, std, device) for images in splits)
        warn_unseen_classes(train.labels, test.labels)
        subject = FixedFeatures(train, test)
        return {f"{name}_top1": ONLINE_SCORES[name].build().evaluate(subject).scores["top1"].value for name in names}

    return scores


@lru_cache(maxsize=1)
def _warn_once(text: str) -> None:
    log.warning(text)


def warn_unseen_classes(train: np.ndarray, test: np.ndarray) -> None:
    """Warn once if more than one test image in fifty has a class that no train image has; labels are (N,) and (M,)."""
    unseen = float(np.isin(test, train, invert=True).mean())
    if unseen > _UNSEEN_SHARE:
        _warn_once(
            f"{unseen:.0%} of the test images used for scores during the run have a class that none of the train images used has, so they "
            "are always wrong: the row groups of evaluate.train or evaluate.test are ordered by class. Raise evaluate.online_rows, or "
            "write shards in which classes are mixed."
        )
