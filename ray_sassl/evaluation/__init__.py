"""Evaluation of encoders on labeled images.

A protocol (`protocols/`, one file each) takes a `Subject`, an encoder with the labeled images to evaluate it on, or only a
`FeatureSubject`, and returns an `Evaluation`: scores with confidence intervals, figures, details, and a prediction for each test image. The
subject decides where and how features are computed (`workplace.py`); protocols that ask for the same features share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from ray_sassl.data import DataConfig
    from ray_sassl.evaluation.protocols import ProtocolConfig
    from ray_sassl.views.center_crop import EvaluationView

Split = Literal["train", "test"]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Takes a title and a total, and returns a context with a function that is called with each amount of finished work."""


def no_progress(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda amount: None)


@dataclass(frozen=True)
class LabeledFeatures:
    """Frozen features of labeled images.

    Attributes:
        features: (N, F) float32.
        labels: (N,) int64.
        sample_id: (N,) int64, each image's number in its data set; by default its place in this array.
    """

    features: np.ndarray
    labels: np.ndarray
    sample_id: np.ndarray = field(default=None)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.sample_id is None:
            object.__setattr__(self, "sample_id", np.arange(len(self.labels)))

    def take(self, rows: np.ndarray) -> LabeledFeatures:
        """Some of the rows, by their places or by a (N,) bool mask."""
        return LabeledFeatures(self.features[rows], self.labels[rows], self.sample_id[rows])


@dataclass(frozen=True)
class Score:
    """A score with its 95 % confidence interval.

    Attributes:
        low: Lower end of the interval; None without an interval.
        high: Upper end of the interval.
        is_share: Whether it is a share in [0, 1], which is shown in percent.
        chance: The value of guessing, if that is known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    is_share: bool = False
    chance: float | None = None

    def as_share(self, chance: float | None = None) -> Score:
        """The score, marked as a share in [0, 1]."""
        return replace(self, is_share=True, chance=chance)


@dataclass(frozen=True)
class Predictions:
    """The predicted class of each test image, so that two encoders can be compared image by image.

    Attributes:
        sample_id: (N,) int64, the image's number in the test set.
        labels: (N,) int64.
        predicted: (N,) int64, the class with the highest score.
    """

    sample_id: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels == self.predicted


@dataclass(frozen=True)
class Evaluation:
    """The result of a protocol.

    Attributes:
        scores: Scores by name.
        figures: PNG files by name.
        details: Other results, as JSON values.
        predictions: Predictions for the test images, if the protocol classifies them.
        notes: What each score was measured on, in a few words, by the score's name; printed next to it.
    """

    scores: dict[str, Score]
    figures: dict[str, bytes] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A protocol with its own images: those that it fits on, and those that it measures on; `view` is how they are seen, by default as
    the encoder's config says."""

    protocol: ProtocolConfig
    train: DataConfig
    test: DataConfig
    view: EvaluationView | None = None


class ImageChange(ABC):
    """A change of test images before the encoder sees them, such as a corruption; it is sent to the process that reads the images."""

    @property
    @abstractmethod
    def key(self) -> str:
        """A description of the change: changes with equal keys have the same effect on an image."""

    @abstractmethod
    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        """The changed images (B, S, S, 3) uint8 of images of that shape, as the encoder would see them, with labels and ids (B,)."""


class FeatureSubject(ABC):
    """An encoder's features of labeled images, which is all that most protocols need.

    Attributes:
        class_names: The name of each label; empty if the data set has none.
    """

    class_names: tuple[str, ...]

    @abstractmethod
    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels (N,) int64 of all labeled images of a split, without reading the images; some may turn out to be damaged."""

    @abstractmethod
    def features(self, split: Split) -> LabeledFeatures:
        """The frozen encoder's features of all labeled images of a split, in the order of their ids."""


class Subject(FeatureSubject):
    """An encoder and the labeled images that it is evaluated on.

    Attributes:
        size_px: Side of the squares that the encoder sees.
        pixel_mean: Mean of each channel, of intensities in [0, 1].
        pixel_std: Standard deviation of each channel, of intensities in [0, 1].
        trained_with: The stylizer that stylized the encoder's training views; None if there was none, or it is not known.
    """

    size_px: int
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    trained_with: str | None = None

    @abstractmethod
    def names(self, split: Split) -> list[str]:
        """The name of each image of `labels`, such as its file's, without reading the images.

        Raises:
            UsageError: the data set has no names.
        """

    @abstractmethod
    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        """The features of all test images after each of the changes; the images are read once for all of them."""

    @abstractmethod
    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8: images of a split by their ids, in the order of the ids, as the encoder sees them; a damaged one is black."""

    @abstractmethod
    def encoder(self) -> tuple[nn.Module, int]:
        """A copy of the encoder whose weights may be changed, (B, 3, S, S) of normalized pixels -> (B, F), and F."""

    @abstractmethod
    def training_views(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Random crops, mirrored half of the time, of these train images: batches (B, S, S, 3) uint8 with labels (B,), epoch by epoch.

        The last batch of an epoch may be smaller.
        """

    @abstractmethod
    def training_features(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The frozen encoder's features of the crops of `training_views`: batches (B, F) float32 with labels (B,)."""

    @abstractmethod
    def outputs(self, network: nn.Module) -> LabeledFeatures:
        """The outputs for all test images of a network that was made from the encoder, (B, 3, S, S) -> (B, C)."""

    @abstractmethod
    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        """Such a network's outputs for all test images after each of the changes; the images are read once, and the outputs are not
        kept."""

    @abstractmethod
    def outputs_on(self, network: nn.Module, data: DataConfig) -> tuple[LabeledFeatures, tuple[str, ...]]:
        """Such a network's outputs for all images of other labeled data, and the names of their classes, which need not be the
        subject's."""

    @abstractmethod
    def on(self, train: DataConfig, test: DataConfig) -> Subject:
        """The same encoder with other images."""

    @abstractmethod
    def evaluate(self, tasks: Sequence[Task]) -> list[Evaluation]:
        """The evaluation of the same encoder by each task, in their order; tasks run in parallel if the workplace has several processes."""


class FixedFeatures(FeatureSubject):
    """Features that are already computed."""

    class_names = ()

    def __init__(self, train: LabeledFeatures, test: LabeledFeatures) -> None:
        self._splits = {"train": train, "test": test}

    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return self._splits[split].sample_id, self._splits[split].labels

    def features(self, split: Split) -> LabeledFeatures:
        return self._splits[split]
