"""Scores of an encoder during its training, on validation images, and at its end once on test images; of either a part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import nn

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import FixedFeatures
from ray_sassl.evaluation.datasets import LabeledImages, check_same_names, selection_images
from ray_sassl.evaluation.features import extract_features
from ray_sassl.evaluation.protocols.knn import Config as KnnConfig
from ray_sassl.evaluation.protocols.linear import Config as LinearConfig
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

_UNSEEN_SHARE = 0.02

ONLINE_SCORES: dict[str, KnnConfig | LinearConfig] = {"knn": KnnConfig(), "linear": LinearConfig()}
"""The choices of `evaluate.online`; each is logged as NAME_top1, and in the last line as test_NAME_top1."""


class OnlineScores:
    """Scores of a backbone as `evaluate.online` says, on a part of the labeled images.

    The test images are not looked for before `test` is called.
    """

    def __init__(self, config: ExperimentConfig, device: torch.device) -> None:
        self._evaluate, self._device = config.evaluate, device
        self._mean, self._std = config.train.pixel_mean, config.train.pixel_std
        self._names = list(ONLINE_SCORES) if config.evaluate.online == "both" else [config.evaluate.online]

    @cached_property
    def _selection(self) -> tuple[LabeledImages, LabeledImages]:
        return selection_images(self._evaluate)

    def validation(self, backbone: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """`knn_top1`, `linear_top1` or both, of validation images by train images that are not among them.

        Args:
            check: Called with each batch of images; it may raise an error to end the evaluation.
        """
        return {f"{name}_top1": value for name, value in self._scores(backbone, self._selection[1], check).items()}

    def test(self, backbone: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The same of test images, for the last line of a run; empty where there are none, which is said in the log."""
        test = self._evaluate.test
        if test is None or not self._evaluate.final_test:
            return {}
        try:
            images = LabeledImages(test, self._evaluate.view, self._evaluate.online_rows)
            check_same_names(self._selection[0].index, images.index)
            found = self._scores(backbone, images, check)
        except (UsageError, OSError) as error:
            log.warning(
                "The run is complete, and has no scores on evaluate.test: %s. `ray-sassl evaluate RUN knn` gives them once it is there.",
                error,
            )
            return {}
        return {f"test_{name}_top1": value for name, value in found.items()}

    def _scores(self, backbone: nn.Module, measured: LabeledImages, check: Callable[[], None]) -> dict[str, float]:
        def checked(images: LabeledImages) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for batch in images:
                check()
                yield batch

        train, other = (
            extract_features(backbone, checked(images), self._mean, self._std, self._device) for images in (self._selection[0], measured)
        )
        warn_unseen_classes(train.labels, other.labels)
        subject = FixedFeatures(train, other)
        found = {}
        for name in self._names:
            check()
            found[name] = ONLINE_SCORES[name].build().evaluate(subject).scores["top1"].value
        return found


def online_scores(config: ExperimentConfig, device: torch.device) -> OnlineScores | None:
    """What scores a backbone during a run, or None if there are no labeled images to do so."""
    return None if config.evaluate.train is None else OnlineScores(config, device)


@lru_cache(maxsize=1)
def _warn_once(text: str) -> None:
    log.warning(text)


def warn_unseen_classes(train: np.ndarray, test: np.ndarray) -> None:
    """Warn once if more than one image in fifty of those measured on has a class that no train image has; labels are (N,) and (M,)."""
    unseen = float(np.isin(test, train, invert=True).mean())
    if unseen > _UNSEEN_SHARE:
        _warn_once(
            f"{unseen:.0%} of the images on which the run is scored have a class that none of the train images used has, so they are "
            "always wrong: the row groups of the labeled images are ordered by class. Raise evaluate.online_rows, or "
            "write shards in which classes are mixed."
        )
