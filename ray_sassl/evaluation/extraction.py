"""Features of whole data sets in portions, which a workplace computes one after the other or distributes over actors.

A portion is some row groups. Each is read once, for any number of changes of its images; while the encoder works on one batch, threads
decode the next. Crops of train images, which are new in every epoch, are encoded in portions of the epoch's order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_sassl.data.index import Index
from ray_sassl.data.plan import portions
from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import ImageChange, LabeledFeatures
from ray_sassl.evaluation.crops import CropPortion, TrainingCrops
from ray_sassl.evaluation.feature_files import FeatureSpill
from ray_sassl.evaluation.features import features_of
from ray_sassl.evaluation.images import EvaluationBatch, evaluation_images
from ray_sassl.pipeline import OnBad
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import EvaluationView

BATCH_SIZE = 64
PORTION_ROWS = 1024


@dataclass(frozen=True)
class Preprocessing:
    """How images become the encoder's input.

    Attributes:
        view: How an image becomes a square.
        pixel_mean: Mean of each channel, of intensities in [0, 1].
        pixel_std: Standard deviation of each channel, of intensities in [0, 1].
    """

    view: EvaluationView
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def key(self) -> str:
        """A description: with equal keys, equal images become equal inputs."""
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.pixel_mean, self.pixel_std))
        return f"{self.view}; mean {mean}; std {std}; float32"


@dataclass(frozen=True)
class ExtractionJob:
    """An encoder and the images to compute its features of.

    Attributes:
        encoder: (B, 3, S, S) -> (B, F).
        index: The images; those without a label are left out.
        changes: Changes of the images. Features are computed for each entry; None means unchanged images.
        is_exact: Whether the features of the whole data set are kept as float32, as scores of classes should be, and not as float16.
    """

    encoder: nn.Module
    index: Index
    preprocessing: Preprocessing
    changes: tuple[ImageChange | None, ...] = (None,)
    is_exact: bool = False

    @property
    def items(self) -> list[list[int]]:
        """The portions, as lists of row groups."""
        return portions(self.index, PORTION_ROWS)


@dataclass(frozen=True)
class Extracted:
    """Features of some row groups or of a whole data set, one entry per change, and the rows that could not be decoded."""

    parts: list[LabeledFeatures]
    bad: list[BadRow]


class KeptImages:
    """Decoded images of earlier portions, up to `max_bytes`; others are decoded again each time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._known: dict[tuple[str, str, tuple[int, ...]], tuple[list[EvaluationBatch], list[BadRow]]] = {}

    def batches(self, job: ExtractionJob, groups: Sequence[int], num_threads: int, bad: list[BadRow]) -> Iterator[EvaluationBatch]:
        """The images of these row groups in batches; rows that cannot be decoded are added to `bad`."""
        view = job.preprocessing.view
        key = job.index.fingerprint, str(view), tuple(groups)
        if key in self._known:
            batches, bad_rows = self._known[key]
            bad.extend(bad_rows)
            yield from batches
            return
        num_bytes = int(job.index.group_rows[list(groups)].sum()) * view.size_px**2 * 3
        kept: list[EvaluationBatch] | None = [] if self._num_bytes + num_bytes <= self._max_bytes else None
        for batch in evaluation_images(job.index, groups, view, bad.extend, batch_size=BATCH_SIZE, num_threads=num_threads):
            if kept is not None:
                kept.append(batch)
            yield batch
        if kept is not None:
            self._known[key] = kept, list(bad)
            self._num_bytes += num_bytes


class Extractor:
    """Computes portions of one job in this process. The encoder is copied to the device once, in evaluation mode.

    Args:
        num_threads: Threads for decoding; torch has its own.
        kept: Images that were decoded for other jobs.
    """

    def __init__(self, job: ExtractionJob, device: torch.device, num_threads: int, kept: KeptImages | None = None) -> None:
        self._job, self._device, self._num_threads = job, device, num_threads
        self._kept = kept or KeptImages(max_bytes=0)
        self._encoder = copy.deepcopy(job.encoder).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]

    def portion(self, groups: Sequence[int]) -> Extracted:
        """The features of the labeled images of these row groups, in their order."""
        job = self._job
        bad: list[BadRow] = []
        sides: list[list[np.ndarray]] = [[] for _ in job.changes]
        labels: list[np.ndarray] = []
        ids: list[np.ndarray] = []
        for batch in self._kept.batches(job, groups, self._num_threads, bad):
            if not len(batch.labels):  # none of its images could be decoded
                continue
            labels.append(batch.labels)
            ids.append(batch.sample_id)
            for side, change in zip(sides, job.changes, strict=True):
                side.append(self._features(batch, change))
        if not labels:
            return Extracted([], bad)
        joined_labels, joined_ids = np.concatenate(labels).astype(np.int64), np.concatenate(ids)
        return Extracted([LabeledFeatures(np.concatenate(side), joined_labels, joined_ids) for side in sides], bad)

    def _features(self, batch: EvaluationBatch, change: ImageChange | None) -> np.ndarray:
        images = batch.images if change is None else change.apply(batch.images, batch.labels, batch.sample_id)
        prep = self._job.preprocessing
        return features_of(self._encoder, images, prep.pixel_mean, prep.pixel_std, self._device)


@dataclass(frozen=True)
class CropJob:
    """An encoder and the crops of train images to compute its features of, new in every epoch; see `crops.TrainingCrops`.

    Attributes:
        encoder: (B, 3, S, S) -> (B, F).
        index: The images.
        preprocessing: Preprocessing of the crops, which have its size.
        sample_id: (N,) int64, the images.
    """

    encoder: nn.Module
    index: Index
    preprocessing: Preprocessing
    sample_id: np.ndarray
    epochs: int
    batch_size: int
    seed: int

    def crops(self) -> TrainingCrops:
        """The crops, before they are encoded."""
        return TrainingCrops(self.index, self.sample_id, self.preprocessing.view.size_px, self.batch_size, self.seed)


class CropEncoder:
    """Computes portions of one job in this process. The encoder is a copy in evaluation mode, so its batch statistics are fixed."""

    def __init__(self, job: CropJob, device: torch.device, num_threads: int) -> None:
        self.crops = job.crops()
        self._preprocessing, self._device, self._num_threads = job.preprocessing, device, num_threads
        self._encoder = copy.deepcopy(job.encoder).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]

    def pieces(self, portions: Iterable[CropPortion], on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and labels, a few crops at a time."""
        prep = self._preprocessing
        for images, labels in self.crops.pieces(portions, self._num_threads, on_bad):
            yield features_of(self._encoder, images, prep.pixel_mean, prep.pixel_std, self._device), labels

    def portion(self, portion: CropPortion) -> tuple[np.ndarray, np.ndarray, list[BadRow]]:
        """Features (n, F) and labels (n,) of a portion, and the rows that could not be decoded."""
        bad: list[BadRow] = []
        features, labels = (np.concatenate(column) for column in zip(*self.pieces([portion], bad.extend), strict=True))
        return features, labels, bad


def joined(job: ExtractionJob, done: Iterable[Extracted]) -> Extracted:
    """The portions of a job, given in any order, joined in the order of the images; their features go to files as they come.

    Raises:
        UsageError: there are no labeled images that can be decoded, or there is no room for their features.
    """
    bad: list[BadRow] = []
    spills = [FeatureSpill("float32" if job.is_exact else "float16") for _ in job.changes]
    for portion in done:
        bad += portion.bad
        for spill, part in zip(spills, portion.parts, strict=False):  # a portion whose images are all bad has no parts
            spill.add(part)
    if not spills[0].num_rows:
        paths = ", ".join(job.index.config.paths)
        raise UsageError(f"{paths} has no labeled images to compute features of ({len(bad):,} rows could not be decoded)")
    return Extracted([spill.result() for spill in spills], bad)
