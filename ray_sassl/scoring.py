"""Scores of encoders on labelled images: during a run (`online_knn`) and after it (`score`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ray_sassl.backbones import build_backbone
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.index import Index, all_labels, build_index
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.evaluate import ProtocolConfig
from ray_sassl.evaluate.features import extract_features
from ray_sassl.evaluate.knn import Config as KnnConfig
from ray_sassl.pipeline import labelled_images
from ray_sassl.plugins import UsageError

_KEPT_BYTES = 2**30


class LabelledImages:
    """Batches of images (B, H, W, 3) uint8 and labels (B,), as often as they are asked for.

    What takes less than 1 GiB once decoded is kept; more is decoded anew at each pass. Images that cannot be decoded are left out and
    counted, apart from those of the run's own data.

    Args:
        limit: At most so many rows.
    """

    def __init__(self, config: DataConfig, size_px: int, limit: int | None = None) -> None:
        self.config, self.size_px, self.limit = config, size_px, limit
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = None

    @cached_property
    def index(self) -> Index:
        return build_index(self.config)

    @cached_property
    def quarantine(self) -> Quarantine:
        """The images that could not be decoded so far."""
        return Quarantine(self.index.num_rows, self.config.max_bad_fraction)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64: the labels of all rows that have one."""
        labels = all_labels(self.index)
        return labels[labels != NO_LABEL]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._kept is not None:
            yield from self._kept
            return
        rows = min(self.index.num_rows, self.limit or self.index.num_rows)
        kept = [] if rows * self.size_px**2 * 3 <= _KEPT_BYTES else None
        for batch in labelled_images(self.config, self.index, self.size_px, self.quarantine.add, limit=self.limit):
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept


@dataclass(frozen=True)
class EvaluationData:
    """What encoders are evaluated on."""

    train: LabelledImages
    test: LabelledImages

    @property
    def num_bad(self) -> int:
        """Images that could not be decoded, of those looked at so far."""
        return self.train.quarantine.num_bad + self.test.quarantine.num_bad

    @property
    def chance(self) -> float:
        """Top-1 of always guessing the test set's most frequent class."""
        counts = np.bincount(self.test.labels)
        return float(counts.max() / counts.sum())


def load_evaluation_data(config: ExperimentConfig) -> EvaluationData:
    """The labelled images of `evaluate.train` and `evaluate.test`.

    Raises:
        UsageError: no such data are configured, or they have no labels.
    """
    splits = {}
    for split, data in (("train", config.evaluate.train), ("test", config.evaluate.test)):
        if data is None:
            raise UsageError(f"evaluate.{split} is not set; say which labelled images to use: 'evaluate.{split}={{path: FOLDER}}'")
        splits[split] = LabelledImages(data, config.evaluate.size_px)
        if not len(splits[split].labels):
            raise UsageError(f"evaluate.{split}: {data.path} has no labels (label_column={data.label_column!r})")
    return EvaluationData(**splits)


def online_knn(config: ExperimentConfig, device: torch.device) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scores a backbone by kNN on a part of the evaluation data, or None where no such data are configured."""
    if config.evaluate.train is None or config.evaluate.test is None:
        return None
    splits = [
        LabelledImages(data, config.evaluate.size_px, config.evaluate.online_rows) for data in (config.evaluate.train, config.evaluate.test)
    ]
    mean, std = config.train.pixel_mean, config.train.pixel_std

    def knn_top1(backbone: nn.Module) -> dict[str, float]:
        train, test = (extract_features(backbone, images, mean, std, device) for images in splits)
        return {"knn_top1": KnnConfig().build().evaluate(train, test)["top1"]}

    return knn_top1


def score(config: ExperimentConfig, backbone: nn.Module, data: EvaluationData, protocols: list[ProtocolConfig]) -> list[dict[str, float]]:
    """The protocols' scores of an encoder, one dictionary a protocol; features are computed once.

    Raises:
        TooManyBadRowsError: more images cannot be decoded than `max_bad_fraction` of their data allows.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = backbone.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    mean, std = config.train.pixel_mean, config.train.pixel_std
    train, test = (extract_features(backbone, images, mean, std, device) for images in (data.train, data.test))
    return [protocol.build().evaluate(train, test) for protocol in protocols]


def untrained_backbone(config: ExperimentConfig) -> nn.Module:
    """The encoder as the run's seed initialises it."""
    torch.manual_seed(config.seed)
    return build_backbone(config.backbone)[0]


class RawPixels(nn.Module):
    """The baseline that looks at nothing but pixels: an image's features are its normalised values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)
