"""Evaluation protocols on frozen features: one file each. `evaluate/knn.py` is `ray-sassl evaluate RUN knn`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ray_sassl.plugins import PluginConfig


@dataclass(frozen=True)
class LabelledFeatures:
    """Frozen features of a data set: `features` (N, F) float32 and `labels` (N,) int64."""

    features: np.ndarray
    labels: np.ndarray


class Protocol(ABC):
    """Scores features: fitted on the train set, measured on the test set."""

    @abstractmethod
    def evaluate(self, train: LabelledFeatures, test: LabelledFeatures) -> dict[str, float]:
        """Scores by name; `top1` (share in [0, 1]) is always there, `top5` where there are more than five classes."""


class ProtocolConfig(PluginConfig, ABC):
    """The config of a protocol."""

    @abstractmethod
    def build(self) -> Protocol:
        """The protocol, ready to evaluate."""
