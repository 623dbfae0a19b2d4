"""The labeled images that encoders are evaluated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.data.reading import all_labels, build_index
from ray_sassl.evaluation.images import labeled_images
from ray_sassl.evaluation.scores import check_classes
from ray_sassl.plugins import UsageError

_KEPT_BYTES = 2**30


class LabeledImages:
    """Batches of images (B, H, W, 3) uint8 and labels (B,); they can be iterated repeatedly.

    Up to 1 GiB of decoded images is kept; more is decoded again at each pass. Images that cannot be decoded are left out and counted,
    separately from those of the run's own data.

    Args:
        limit: Maximum number of rows.
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
        for batch in labeled_images(self.config, self.index, self.size_px, self.quarantine.add, limit=self.limit):
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept


@dataclass(frozen=True)
class EvaluationData:
    """The labeled images that encoders are evaluated on."""

    train: LabeledImages
    test: LabeledImages

    @property
    def num_bad(self) -> int:
        """How many images could not be decoded so far."""
        return self.train.quarantine.num_bad + self.test.quarantine.num_bad

    @property
    def chance(self) -> float:
        """Top-1 of always guessing the test set's most frequent class."""
        counts = np.bincount(self.test.labels)
        return float(counts.max() / counts.sum())


def load_evaluation_data(config: ExperimentConfig) -> EvaluationData:
    """The labeled images of `evaluate.train` and `evaluate.test`.

    Raises:
        UsageError: no such data are configured, or their labels do not fit together; see `labeled_data`.
    """
    for split, data in (("train", config.evaluate.train), ("test", config.evaluate.test)):
        if data is None:
            raise UsageError(f"evaluate.{split} is not set; say which labeled images to use: 'evaluate.{split}={{path: FOLDER}}'")
    assert config.evaluate.train is not None
    assert config.evaluate.test is not None
    return labeled_data(config.evaluate.train, config.evaluate.test, config.evaluate.size_px)


def labeled_data(train: DataConfig, test: DataConfig, size_px: int) -> EvaluationData:
    """Labeled images to fit on and to measure on; images are not read.

    Raises:
        UsageError: one of them has no labels, a label is out of range, the classes of the two differ, or a class has test images and no
            train images.
    """
    splits = {"train": LabeledImages(train, size_px), "test": LabeledImages(test, size_px)}
    for split, images in splits.items():
        if not len(images.labels):
            raise UsageError(f"evaluate.{split}: {images.config.path} has no labels (label_column={images.config.label_column!r})")
    names = [images.index.class_names for images in splits.values()]
    if names[0] and names[1] and names[0] != names[1]:
        differing = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            f"{train.path} has {len(names[0])} classes and {test.path} {len(names[1])}, so their labels mean different things; "
            f"in one only: {', '.join(differing[:10])}"
        )
    check_classes(splits["train"].labels, splits["test"].labels, names[0])
    return EvaluationData(**splits)
