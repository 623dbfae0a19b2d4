"""Scores of an encoder while it trains, on a part of the evaluation data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import FixedFeatures, ProtocolConfig
from ray_sassl.evaluation.datasets import LabeledImages
from ray_sassl.evaluation.features import extract_features
from ray_sassl.evaluation.protocols.knn import Config as KnnConfig
from ray_sassl.evaluation.protocols.linear import Config as LinearConfig

log = logging.getLogger(__name__)

_UNSEEN_SHARE = 0.02

ONLINE_SCORES: dict[str, ProtocolConfig] = {"knn": KnnConfig(), "linear": LinearConfig()}
"""What `evaluate.online` may name; each is logged as NAME_top1."""


def online_scores(config: ExperimentConfig, device: torch.device) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scores a backbone as `evaluate.online` says on a part of the evaluation data, or None where no such data are configured."""
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
    """Say so, once, where of labels (N,) and (M,) more than one test image in fifty has a class that no train image has."""
    unmet = float(np.isin(test, train, invert=True).mean())
    if unmet > _UNSEEN_SHARE:
        _warn_once(
            f"{unmet:.0%} of the test images taken for the scores during the run have a class that none of the train images taken has, and can only be "
            "wrong: the row groups of evaluate.train or evaluate.test are ordered by class. Raise evaluate.online_rows, or write shards in which "
            "classes are mixed."
        )
