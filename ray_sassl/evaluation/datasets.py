"""The labeled images that encoders are evaluated on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ray_sassl.config.schema import EvaluateConfig, EvaluatedConfig
from ray_sassl.data import NO_LABEL, DataConfig, Rows
from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index
from ray_sassl.data.inspect import sample_rows
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import alike, all_labels, each_group, kept_index
from ray_sassl.evaluation.apart import check_train_and_test
from ray_sassl.evaluation.images import BATCH_ROWS, EvaluationBatch, chosen_parts, chosen_rows, decoded
from ray_sassl.evaluation.scores import check_classes
from ray_sassl.evaluation.splits import held_out
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import EvaluationView, as_view

_KEPT_BYTES = 2**30
_ROWS_TRIED = 128


class LabeledImages:
    """Batches of images (B, H, W, 3) uint8 and labels (B,); they can be iterated repeatedly.

    They are kept decoded if all fit into `keep_bytes`, or else encoded as far as they fit. Images that cannot be decoded are left out and
    counted, separately from those of the run's own data.

    Args:
        limit: Maximum number of rows.
        index: Of the data set, if it is known already.
        wanted: (num_rows,) bool by sample id: only these rows; not given: all.
        keep_bytes: How much memory they may take between two passes.

    Attributes:
        rank: Of the processes that share the batches, the number of this one, which keeps its own share.
        world_size: How many processes share them.
    """

    def __init__(
        self,
        config: DataConfig,
        view: EvaluationView | int,
        limit: int | None = None,
        index: Index | None = None,
        wanted: np.ndarray | None = None,
        *,
        keep_bytes: int = _KEPT_BYTES,
        world_size: int = 1,
    ) -> None:
        self.config, self.view, self.limit, self.wanted = config, as_view(view), limit, wanted
        self.rank, self.world_size = 0, world_size
        self._keep_bytes = keep_bytes
        self._decoded: list[EvaluationBatch] | None = None
        self._encoded: dict[tuple[int, int], Rows] = {}
        self._encoded_bytes = 0
        if index is not None:
            self.index = index

    @cached_property
    def index(self) -> Index:
        return kept_index(self.config)

    @cached_property
    def quarantine(self) -> Quarantine:
        """The images that could not be decoded so far."""
        return Quarantine(self.index.num_rows, self.config.max_bad_fraction)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64: the labels of all rows that have one."""
        labels = all_labels(self.index)
        labels = labels if self.wanted is None else labels[self.wanted]
        return labels[labels != NO_LABEL]

    @cached_property
    def _parts(self) -> tuple[list[tuple[int, int]], int]:
        return chosen_parts(self.index, self.limit, self.wanted)

    @property
    def num_rounds(self) -> int:
        """The largest number of batches of one process."""
        return -(-len(self._parts[0]) // self.world_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in self.batches():
            yield batch.images, batch.labels

    def batches(self, rank: int | None = None) -> Iterator[EvaluationBatch]:
        """The batches of a process, by default of this one; those of all processes are the batches of one that is alone."""
        if rank is not None and rank != self.rank:
            yield from self._read(rank, keep=False)
            return
        if self._decoded is not None:
            yield from self._decoded
            return
        rows = min(self.index.num_rows, self.limit or self.index.num_rows, self.num_rounds * min(self._parts[1], BATCH_ROWS))
        is_kept = rows * self.view.size_px**2 * 3 <= self._keep_bytes
        kept: list[EvaluationBatch] = []
        for batch in self._read(self.rank, keep=not is_kept):
            if is_kept:
                kept.append(batch)
            yield batch
        self._decoded = kept if is_kept else None

    def _read(self, rank: int, *, keep: bool) -> Iterator[EvaluationBatch]:
        return decoded(self._share(rank, keep=keep), self.config.max_pixels, self.view, self.quarantine.add)

    def _share(self, rank: int, *, keep: bool) -> Iterator[Rows | None]:
        """The encoded images by batch, from memory as far as they are kept."""
        parts, rows_per_group = self._parts
        mine = parts[rank :: self.world_size]
        fresh = each_group(self.index, list(dict.fromkeys(group for group, part in mine if (group, part) not in self._encoded)))
        read, rows = -1, None
        for group, part in mine:
            if (found := self._encoded.get((group, part))) is None:
                if read != group:
                    read, rows = group, chosen_rows(next(fresh), rows_per_group, self.wanted)
                found = rows.at(np.arange(len(rows))[part * BATCH_ROWS : (part + 1) * BATCH_ROWS]) if rows is not None else None
                num_bytes = sum(len(image) for image in found.encoded if isinstance(image, bytes)) if found is not None else 0
                if keep and found is not None and self._encoded_bytes + num_bytes <= self._keep_bytes:
                    self._encoded[group, part] = found
                    self._encoded_bytes += num_bytes
            yield found


def selection_images(evaluate: EvaluateConfig, world_size: int = 1) -> tuple[LabeledImages, LabeledImages]:
    """What scores during a run are fitted on, and what they are measured on: train images and validation images, never test images.

    Args:
        world_size: How many processes share them.

    Raises:
        UsageError: `evaluate.train` has no labels, or too few images to leave some of them out.
    """
    assert evaluate.train is not None
    view, limit = evaluate.view, evaluate.online_rows
    share: dict[str, Any] = {"keep_bytes": int(evaluate.keep_gb * 1e9 / 2 / world_size), "world_size": world_size}
    if evaluate.own_validation is not None:
        train, validation = (LabeledImages(data, view, limit, **share) for data in (evaluate.train, evaluate.own_validation))
        check_same_names(train.index, validation.index)
        return train, validation
    index = kept_index(evaluate.train)
    labels = all_labels(index)
    places = np.flatnonzero(labels != NO_LABEL)
    if not len(places):
        raise UsageError(f"evaluate.train: {evaluate.train.path} has no labels (label_column={evaluate.train.label_column!r})")
    try:
        aside = held_out(labels[places], float(evaluate.validation), evaluate.validation_seed)  # pyright: ignore[reportArgumentType]
    except UsageError as error:
        raise UsageError(
            f"evaluate.train: {evaluate.train.path} has no class of two images, so none can be left out to measure on; give validation "
            "images of their own (evaluate.validation='{path: FOLDER}'), or no images to score by: evaluate.train=null"
        ) from error
    masks = np.zeros((2, index.num_rows), bool)
    masks[0, places[~aside]] = masks[1, places[aside]] = True
    train, validation = (LabeledImages(evaluate.train, view, limit, index, mask, **share) for mask in masks)
    return train, validation


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


def load_evaluation_data(config: EvaluatedConfig) -> EvaluationData:
    """The labeled images of `evaluate.train` and `evaluate.test`.

    Raises:
        UsageError: no such data are configured, or their labels do not fit together; see `labeled_data`.
    """
    for split, data in (("train", config.evaluate.train), ("test", config.evaluate.test)):
        if data is None:
            raise UsageError(f"evaluate.{split} is not set; say which labeled images to use: 'evaluate.{split}={{path: FOLDER}}'")
    assert config.evaluate.train is not None
    assert config.evaluate.test is not None
    return labeled_data(config.evaluate.train, config.evaluate.test, config.evaluate.view)


def labeled_data(train: DataConfig, test: DataConfig, view: EvaluationView | int) -> EvaluationData:
    """Labeled images to fit on and to measure on; images are not read.

    Raises:
        UsageError: they are the same images, one of them has no labels, a label is out of range, the classes of the two differ, or a class
            has test images and no train images.
    """
    check_train_and_test(train, test)
    splits = {"train": LabeledImages(train, view), "test": LabeledImages(test, view)}
    for split, images in splits.items():
        if not len(images.labels):
            raise UsageError(f"evaluate.{split}: {images.config.path} has no labels (label_column={images.config.label_column!r})")
    check_same_names(splits["train"].index, splits["test"].index)
    check_classes(splits["train"].labels, splits["test"].labels, splits["train"].index.class_names)
    return EvaluationData(**splits)


def check_same_names(one: Index, other: Index) -> None:
    """Check that the labels of two data sets mean the same, as far as both name their classes.

    Raises:
        UsageError: they do not.
    """
    names, others = one.class_names, other.class_names
    if names and others and names != others:
        differing = sorted(set(names) ^ set(others)) or ["their order"]
        twins = alike(differing)
        raise UsageError(
            f"{one.config.path} has {len(names)} classes and {other.config.path} {len(others)}, so their labels mean different things; "
            f"in one only: {', '.join(differing[:10])}" + (f". These differ only in case, spaces or Unicode form: {twins}" if twins else "")
        )


def check_usable(index: Index) -> None:
    """Check that the images have labels and can be decoded, by some of them.

    Raises:
        UsageError: there are no labels, or so many of the images are damaged that more than `max_bad_fraction` of all must be.
    """
    if not (all_labels(index) != NO_LABEL).any():
        raise UsageError(f"{index.config.path} has no labels (label_column={index.config.label_column!r})")
    rows = sample_rows(index, _ROWS_TRIED)
    bad = [image for image in decode_rows(rows, index.config.max_pixels, lambda _: None) if isinstance(image, BadRow)]
    allowed = index.config.max_bad_fraction * len(rows)
    if len(rows) < index.num_rows:
        allowed += 1 + 3 * math.sqrt(allowed)  # so few may be among these by chance
    if len(bad) > allowed:
        named = "".join(f"\n  {row}" for row in bad[:5])
        raise UsageError(
            f"{len(bad)} of {len(rows)} images of {index.config.path} cannot be decoded, and "
            f"max_bad_fraction={index.config.max_bad_fraction:g} of all may be damaged:{named}"
        )
