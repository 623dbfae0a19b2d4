"""A subject that looks at small images of its own, in this process."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from ray_sassl.data import DataConfig
from ray_sassl.evaluation import Evaluation, ImageChange, LabeledFeatures, Split, Subject, Task
from ray_sassl.evaluation.features import features_of
from ray_sassl.process.errors import UsageError

CLASSES = ("red", "green", "blue")
SIZE_PX = 32


class Coarse(nn.Module):
    """The means of 4 x 4 patches of the image, through a linear layer of fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16, 24)
        nn.init.normal_(self.layer.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


class Normalized(nn.Module):
    """A small convolution with batch normalization and dropout in front of `Coarse`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        nn.init.dirac_(self.first.weight)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.1)
        self.rest = Coarse()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.drop(self.norm(self.first(x))))


class SmallSubject(Subject):
    """Noisy images of three classes, which differ by a color and by where a bar stands; ids are not the images' places."""

    class_names = CLASSES
    size_px = SIZE_PX
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.25, 0.25, 0.25)

    def __init__(self, num_train: int = 90, num_test: int = 60, *, shuffled: bool = False, network: nn.Module | None = None) -> None:
        self.network = network or Coarse()
        self.data = {"train": _images(num_train, 0, shuffled), "test": _images(num_test, 1, shuffled)}
        self.num_passes = 0

    def _features(self, network: nn.Module, split: Split, images: np.ndarray) -> LabeledFeatures:
        network.eval()
        features = features_of(network, images, self.pixel_mean, self.pixel_std, "cpu")
        return LabeledFeatures(features, self.data[split][1], 3 * np.arange(len(images)) + 5)

    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return 3 * np.arange(len(self.data[split][1])) + 5, self.data[split][1]

    def names(self, split: Split) -> list[str]:
        return [f"{split}_{place}.png" for place in range(len(self.data[split][1]))]

    def features(self, split: Split) -> LabeledFeatures:
        return self._features(self.network, split, self.data[split][0])

    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        self.num_passes += 1
        images, labels = self.data["test"]
        ids = 3 * np.arange(len(images)) + 5
        assert len({change.key for change in changes}) == len(changes)
        return [self._features(self.network, "test", change.apply(images, labels, ids)) for change in changes]

    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        return self.data[split][0][(sample_id - 5) // 3]

    def encoder(self) -> tuple[nn.Module, int]:
        return copy.deepcopy(self.network), 24

    def training_views(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        images, labels = self.data["train"]
        for epoch in range(epochs):
            rows = np.random.default_rng([seed, epoch]).permutation((sample_id - 5) // 3)
            for start in range(0, len(rows), batch_size):
                yield images[rows[start : start + batch_size]], labels[rows[start : start + batch_size]]

    def training_features(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in self.training_views(sample_id, epochs, batch_size, seed):
            yield features_of(self.network.eval(), images, self.pixel_mean, self.pixel_std, "cpu"), labels

    def outputs(self, network: nn.Module) -> LabeledFeatures:
        return self._features(network, "test", self.data["test"][0])

    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        self.num_passes += 1
        images, labels = self.data["test"]
        ids = 3 * np.arange(len(images)) + 5
        return [self._features(network, "test", change.apply(images, labels, ids)) for change in changes]

    def outputs_on(self, network: nn.Module, data: DataConfig) -> tuple[LabeledFeatures, tuple[str, ...]]:
        raise UsageError("there are no other images here")

    def on(self, train: object, test: object) -> Subject:
        raise UsageError("there are no other images here")

    def evaluate(self, tasks: Sequence[Task]) -> list[Evaluation]:
        raise UsageError("there are no other images here")


def _images(num: int, seed: int, shuffled: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    images = rng.normal(110, 30, (num, SIZE_PX, SIZE_PX, 3))
    for image, label in zip(images, labels, strict=True):
        image[..., label] += 40
        image[:, 4 + 9 * label : 10 + 9 * label] += 60
    return images.clip(0, 255).astype(np.uint8), rng.permutation(labels) if shuffled else labels


@pytest.fixture
def subject() -> SmallSubject:
    return SmallSubject()


@pytest.fixture
def normalized_subject() -> SmallSubject:
    """A subject whose encoder has batch normalization and dropout."""
    return SmallSubject(network=Normalized())
