"""Evaluation protocols: one file each. `evaluate/knn.py` is `ray-sassl evaluate RUN knn`.

A protocol is handed a `Subject`, which is an encoder with the labeled images that it is judged by, and returns an `Evaluation`: scores with
confidence intervals, pictures, what else is worth keeping, and its prediction for each test image. Where and how features are computed is the
subject's business; protocols that ask for the same ones share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ray_sassl.plugins import PluginConfig, UsageError

if TYPE_CHECKING:
    from torch import nn

    from ray_sassl.data import DataConfig

Split = Literal["train", "test"]


@dataclass(frozen=True)
class LabeledFeatures:
    """Frozen features of labeled images.

    Attributes:
        features: (N, F) float32.
        labels: (N,) int64.
        sample_id: (N,) int64, each image's number in its data set; the place in this array where it was not given.
    """

    features: np.ndarray
    labels: np.ndarray
    sample_id: np.ndarray = field(default=None)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.sample_id is None:
            object.__setattr__(self, "sample_id", np.arange(len(self.labels)))

    def take(self, rows: np.ndarray) -> LabeledFeatures:
        """Some of the rows: their places or a (N,) bool mask."""
        return LabeledFeatures(self.features[rows], self.labels[rows], self.sample_id[rows])


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % confidence interval; `low` and `high` are None where the protocol has no interval for it."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Predictions:
    """What was predicted for each test image, so that two encoders can be compared image by image.

    Attributes:
        sample_id: (N,) int64, the image's number in the test set.
        labels: (N,) int64.
        predicted: (N,) int64, the class with the highest score.
    """

    sample_id: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What a protocol has found.

    Attributes:
        scores: By name; a name that ends in `top1`, `top5`, `per_class`, `share`, `accuracy` or `AP` is a share in [0, 1], as are AP50 and AP75.
        figures: PNG files by name.
        details: What else is worth keeping, as JSON has it.
        predictions: For the test images, where the protocol classifies them.
        notes: What a score is of, in a few words, by the score's name; printed beside it.
    """

    scores: dict[str, Score]
    figures: dict[str, bytes] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A protocol, and other images that it is to judge the encoder by.

    Attributes:
        protocol: How.
        train: What it fits on.
        test: What it measures on.
    """

    protocol: ProtocolConfig
    train: DataConfig
    test: DataConfig


class ImageChange(ABC):
    """A change of test images before the encoder sees them, such as a corruption; it is sent to where the images are."""

    @property
    @abstractmethod
    def key(self) -> str:
        """What it does, in words: equal keys make equal images of equal ones."""

    @abstractmethod
    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        """The changed images (B, S, S, 3) uint8 of images of that shape, as the encoder would see them, with labels and ids (B,)."""


class Subject(ABC):
    """An encoder and the labeled images that it is judged by.

    Attributes:
        class_names: The name of each label; empty where the data set has none.
        size_px: Side of the squares that the encoder sees.
        pixel_mean: By channel, of intensities in [0, 1].
        pixel_std: By channel, of intensities in [0, 1].
    """

    class_names: tuple[str, ...]
    size_px: int
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]

    @abstractmethod
    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels (N,) int64 of all labeled images of a split, without reading them; some may turn out to be damaged."""

    @abstractmethod
    def names(self, split: Split) -> list[str]:
        """The name of each image of `labels`, such as its file's, without reading images.

        Raises:
            UsageError: the data set has no names.
        """

    @abstractmethod
    def features(self, split: Split) -> LabeledFeatures:
        """The frozen encoder's features of all labeled images of a split, in the order of their ids."""

    @abstractmethod
    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        """The features of all test images after each of the changes; the images are read once for all of them."""

    @abstractmethod
    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8: images of a split by their ids, in the ids' order, as the encoder sees them; black where one is damaged."""

    @abstractmethod
    def encoder(self) -> tuple[nn.Module, int]:
        """A copy of the encoder whose weights may be changed, (B, 3, S, S) of normalized pixels -> (B, F), and F."""

    @abstractmethod
    def training_views(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Crops at random, mirrored half of the time, of these train images: batches (B, S, S, 3) uint8 with labels (B,), epoch by epoch.

        What is left over at the end of an epoch is a smaller batch.
        """

    @abstractmethod
    def training_features(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The frozen encoder's features of those very crops: batches (B, F) float32 with labels (B,)."""

    @abstractmethod
    def outputs(self, network: nn.Module) -> LabeledFeatures:
        """What a network that was made from the encoder, (B, 3, S, S) -> (B, C), puts out for all test images."""

    @abstractmethod
    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        """What such a network puts out for all test images after each of the changes; the images are read once, and nothing is kept."""

    @abstractmethod
    def on(self, train: DataConfig, test: DataConfig) -> Subject:
        """The same encoder, judged by other images."""

    @abstractmethod
    def judge(self, tasks: Sequence[Task]) -> list[Evaluation]:
        """What each task finds of the same encoder, in their order; they are done side by side where there are several places to work."""


class Protocol(ABC):
    """One way of judging an encoder: fitted on train images where it has something to fit, measured on test images."""

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation:
        """Judge the subject.

        Raises:
            UsageError: its images or features do not fit the protocol.
        """


class ProtocolConfig(PluginConfig, ABC):
    """The config of a protocol."""

    brings_images: ClassVar[bool] = False
    """Whether the images that it judges by are named in its own config, and not in `evaluate.train` and `evaluate.test`."""

    @property
    def sees_encoder(self) -> bool:
        """Whether a copy of the encoder is trained in the protocol's own process: there a GPU is of use."""
        return False

    def absent_images(self) -> str | None:
        """Of a protocol that brings images: why it cannot be done here, such as that no data set is where it looks; None where it can."""
        return None

    @abstractmethod
    def build(self) -> Protocol:
        """The protocol, ready to evaluate."""


class FixedFeatures(Subject):
    """A subject whose features are there already, and nothing else: for protocols that look at features only."""

    def __init__(self, train: LabeledFeatures, test: LabeledFeatures) -> None:
        self.class_names, self.size_px, self.pixel_mean, self.pixel_std = (), 0, (), ()
        self._splits = {"train": train, "test": test}

    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return self._splits[split].sample_id, self._splits[split].labels

    def names(self, split: Split) -> list[str]:
        raise _NO_IMAGES

    def features(self, split: Split) -> LabeledFeatures:
        return self._splits[split]

    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        raise _NO_IMAGES

    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        raise _NO_IMAGES

    def encoder(self) -> tuple[nn.Module, int]:
        raise _NO_IMAGES

    def training_views(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        raise _NO_IMAGES

    def training_features(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        raise _NO_IMAGES

    def outputs(self, network: nn.Module) -> LabeledFeatures:
        raise _NO_IMAGES

    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        raise _NO_IMAGES

    def on(self, train: DataConfig, test: DataConfig) -> Subject:
        raise _NO_IMAGES

    def judge(self, tasks: Sequence[Task]) -> list[Evaluation]:
        raise _NO_IMAGES


_NO_IMAGES = UsageError("this protocol needs the images and the encoder, and only features are here")
