"""Evaluation protocols, one file each: `protocols/knn.py` is `ray-sassl evaluate RUN knn`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ray_sassl.evaluation import Evaluation, Subject
from ray_sassl.plugins import PluginConfig

PROTOCOLS = __name__
"""The package whose plug-ins they are."""


class Protocol(ABC):
    """One way to evaluate an encoder: it may fit a model on train images, and measures on test images.

    A protocol that needs no images declares its subject as a `FeatureSubject`, and can then be used with features alone.
    """

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation:
        """The subject's scores.

        Raises:
            UsageError: the subject's images or features do not fit the protocol.
        """


class ProtocolConfig(PluginConfig, ABC):
    """The config of a protocol."""

    brings_images: ClassVar[bool] = False
    """Whether the protocol's own config names its images, instead of `evaluate.train` and `evaluate.test`."""

    @property
    def sees_encoder(self) -> bool:
        """Whether the protocol trains a copy of the encoder in its own process, which a GPU makes faster."""
        return False

    def absent_images(self) -> str | None:
        """Why a protocol that brings its images cannot run here, such as a missing data set; None if it can."""
        return None

    @abstractmethod
    def build(self) -> Protocol:
        """The protocol, ready to evaluate."""
