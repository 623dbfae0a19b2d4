"""Encoders and the labelled images that they are judged by: during a run (`online_scores`) and after it (`EncoderSubject`)."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_sassl.files import storage
from ray_sassl.backbones import build_backbone
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.index import Index, all_labels, all_names, build_index, read_groups
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.evaluation import Evaluation, FixedFeatures, ImageChange, LabelledFeatures, ProtocolConfig, Split, Subject, Task
from ray_sassl.evaluation.features import evaluation_mode, extract_features
from ray_sassl.evaluation.protocols.knn import Config as KnnConfig
from ray_sassl.evaluation.protocols.linear import Config as LinearConfig
from ray_sassl.evaluation.scores import check_classes
from ray_sassl.evaluation.store import Provenance, encoder_digest, read_features, write_features
from ray_sassl.evaluation.extraction import CropJob, EncodeCrops, Extract, ExtractionJob, Preprocessing, encode_crops_here, extract_here
from ray_sassl.pipeline import decode_images, evaluation_view, labelled_images, training_crops
from ray_sassl.plugins import UsageError

log = logging.getLogger(__name__)

_KEPT_BYTES = 2**30
_UNMET = 0.02


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
        UsageError: no such data are configured, or their labels do not fit together; see `labelled_data`.
    """
    for split, data in (("train", config.evaluate.train), ("test", config.evaluate.test)):
        if data is None:
            raise UsageError(f"evaluate.{split} is not set; say which labelled images to use: 'evaluate.{split}={{path: FOLDER}}'")
    assert config.evaluate.train is not None
    assert config.evaluate.test is not None
    return labelled_data(config.evaluate.train, config.evaluate.test, config.evaluate.size_px)


def labelled_data(train: DataConfig, test: DataConfig, size_px: int) -> EvaluationData:
    """Labelled images to fit on and to measure on; images are not read.

    Raises:
        UsageError: one of them has no labels, a label is out of range, the classes of the two differ, or a class has test images and no train
            images.
    """
    splits = {"train": LabelledImages(train, size_px), "test": LabelledImages(test, size_px)}
    for split, images in splits.items():
        if not len(images.labels):
            raise UsageError(f"evaluate.{split}: {images.config.path} has no labels (label_column={images.config.label_column!r})")
    names = [images.index.class_names for images in splits.values()]
    if names[0] and names[1] and names[0] != names[1]:
        differing = sorted(set(names[0]) ^ set(names[1]))
        raise UsageError(
            f"{train.path} has {len(names[0])} classes and {test.path} {len(names[1])}, so their labels mean different things; in one only: "
            f"{', '.join(differing[:10])}"
        )
    check_classes(splits["train"].labels, splits["test"].labels, names[0])
    return EvaluationData(**splits)


ONLINE_SCORES: dict[str, ProtocolConfig] = {"knn": KnnConfig(), "linear": LinearConfig()}
"""What `evaluate.online` may name; each is logged as NAME_top1."""


def online_scores(config: ExperimentConfig, device: torch.device) -> Callable[[nn.Module], dict[str, float]] | None:
    """Scores a backbone as `evaluate.online` says on a part of the evaluation data, or None where no such data are configured."""
    if config.evaluate.train is None or config.evaluate.test is None:
        return None
    splits = [
        LabelledImages(data, config.evaluate.size_px, config.evaluate.online_rows) for data in (config.evaluate.train, config.evaluate.test)
    ]
    mean, std = config.train.pixel_mean, config.train.pixel_std

    names = list(ONLINE_SCORES) if config.evaluate.online == "both" else [config.evaluate.online]

    def scores(backbone: nn.Module) -> dict[str, float]:
        train, test = (extract_features(backbone, images, mean, std, device) for images in splits)
        warn_of_unmet_classes(train.labels, test.labels)
        subject = FixedFeatures(train, test)
        return {f"{name}_top1": ONLINE_SCORES[name].build().evaluate(subject).scores["top1"].value for name in names}

    return scores


@lru_cache(maxsize=1)
def _warn_once(text: str) -> None:
    log.warning(text)


def warn_of_unmet_classes(train: np.ndarray, test: np.ndarray) -> None:
    """Say so, once, where of labels (N,) and (M,) more than one test image in fifty has a class that no train image has."""
    unmet = float(np.isin(test, train, invert=True).mean())
    if unmet > _UNMET:
        _warn_once(
            f"{unmet:.0%} of the test images taken for the scores during the run have a class that none of the train images taken has, and can only be "
            "wrong: the row groups of evaluate.train or evaluate.test are ordered by class. Raise evaluate.online_rows, or write shards in which "
            "classes are mixed."
        )


class EncoderSubject(Subject):
    """An encoder and the labelled images that it is judged by; features are computed once, and kept in memory and where wanted on disk.

    Args:
        encoder: (B, 3, S, S) -> (B, F); it is left as it is.
        config: Of the run that it comes from: the pixels' mean and deviation, and the size of images.
        data: The images; None where only protocols that bring their own judge it.
        extract: Where features are computed.
        folder: Where features are kept, a path or URI; None: nowhere.
        facts: What is to be known of the encoder beside its digest, such as its checkpoint; kept with the features.
        judge: Where it is judged by other images; not given: here, one set after the other, with `extract`.
        encode_crops: Where crops of train images are encoded.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: ExperimentConfig,
        data: EvaluationData | None,
        extract: Extract = extract_here,
        folder: str | None = None,
        facts: dict[str, Any] | None = None,
        judge: Judge | None = None,
        encode_crops: EncodeCrops = encode_crops_here,
    ) -> None:
        self._encoder, self._config, self._images_of_both = encoder, config, data
        self._extract, self._folder, self._facts, self._judge = extract, folder, facts or {}, judge
        self._encode_crops = encode_crops
        self._known: dict[tuple[Split, str], LabelledFeatures] = {}
        self.size_px = config.evaluate.size_px
        self.pixel_mean, self.pixel_std = config.train.pixel_mean, config.train.pixel_std
        self.class_names = data.train.index.class_names if data is not None else ()

    @cached_property
    def _digest(self) -> str:
        return encoder_digest(self._encoder)

    @property
    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size_px, tuple(self.pixel_mean), tuple(self.pixel_std))

    @property
    def _data(self) -> EvaluationData:
        if self._images_of_both is None:
            raise UsageError("this protocol judges by evaluate.train and evaluate.test, which are not set")
        return self._images_of_both

    def _images(self, split: Split) -> LabelledImages:
        return self._data.train if split == "train" else self._data.test

    def labels(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        labels = all_labels(self._images(split).index)
        sample_id = np.flatnonzero(labels != NO_LABEL)
        return sample_id, labels[sample_id].astype(np.int64)

    def names(self, split: Split) -> list[str]:
        images = self._images(split)
        names = all_names(images.index)
        if names is None:
            raise UsageError(
                f"the images of {', '.join(images.config.paths)} have no names: Parquet files need a column 'key', as `data convert` writes it"
            )
        return [names[row] for row in self.labels(split)[0]]

    def features(self, split: Split) -> LabelledFeatures:
        return self._features(split, [None])[0]

    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabelledFeatures]:
        return self._features("test", changes)

    def _features(self, split: Split, changes: Sequence[ImageChange | None]) -> list[LabelledFeatures]:
        """From memory or disk, and those that are in neither computed in one pass over the images."""
        keys = [change.key if change is not None else _UNCHANGED for change in changes]
        images = self._images(split)
        for key in keys:
            if (split, key) not in self._known and self._folder is not None:
                found = read_features(self._folder, self._provenance(images, key))
                if found is not None:
                    self._known[split, key] = found[0]
                    images.quarantine.add(BadRow(**row) for row in found[1]["bad_rows"])
        missing = {key: change for key, change in zip(keys, changes, strict=True) if (split, key) not in self._known}
        if missing:
            job = ExtractionJob(self._encoder, images.index, self._preprocessing, tuple(missing.values()))
            result = self._extract(job)
            images.quarantine.add(result.bad)
            for key, part in zip(missing, result.parts, strict=True):
                self._known[split, key] = part
                self._keep(images, key, part, result.bad)
        return [self._known[split, key] for key in keys]

    def _provenance(self, images: LabelledImages, key: str) -> Provenance:
        return {"encoder": self._digest, "data": images.index.fingerprint, "preprocessing": self._preprocessing.key, "change": key}

    def _keep(self, images: LabelledImages, key: str, part: LabelledFeatures, bad: list[BadRow]) -> None:
        if self._folder is None:
            return
        facts = {**self._facts, "data": images.config.model_dump(mode="json"), "bad_rows": [asdict(row) for row in bad]}
        write_features(self._folder, part, self._provenance(images, key), facts)

    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        index = self._images(split).index
        groups = np.searchsorted(index.group_first, sample_id, side="right") - 1
        pixels = np.zeros((len(sample_id), self.size_px, self.size_px, 3), np.uint8)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            decoded, good = decode_images(read_groups(index, [int(group)]).take(sample_id[places]), index.config.max_pixels, _ignore)
            for place, image in zip(places[good], decoded, strict=True):
                pixels[place] = np.asarray(evaluation_view(image, self.size_px))
        return pixels

    def encoder(self) -> tuple[nn.Module, int]:
        copied = copy.deepcopy(self._encoder)
        device = next((tensor.device for tensor in copied.state_dict().values()), torch.device("cpu"))
        with evaluation_mode(copied), torch.inference_mode():
            num_features = copied(torch.zeros(1, 3, self.size_px, self.size_px, device=device)).shape[1]
        return copied, num_features

    def training_views(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        train = self._data.train
        return training_crops(train.index, sample_id, self.size_px, epochs, batch_size, seed, train.quarantine.add)

    def training_features(self, sample_id: np.ndarray, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        train = self._data.train
        job = CropJob(self._encoder, train.index, self._preprocessing, sample_id, epochs, batch_size, seed)
        return self._encode_crops(job, train.quarantine.add)

    def outputs(self, network: nn.Module) -> LabelledFeatures:
        return self._outputs(network, (None,))[0]

    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabelledFeatures]:
        return self._outputs(network, tuple(changes))

    def _outputs(self, network: nn.Module, changes: tuple[ImageChange | None, ...]) -> list[LabelledFeatures]:
        result = self._extract(ExtractionJob(network, self._data.test.index, self._preprocessing, changes))
        self._data.test.quarantine.add(result.bad)
        return result.parts

    def on(self, train: DataConfig, test: DataConfig) -> Subject:
        data = labelled_data(train, test, self.size_px)
        return EncoderSubject(self._encoder, self._config, data, self._extract, self._folder, self._facts, self._judge, self._encode_crops)

    def judge(self, tasks: Sequence[Task]) -> list[Evaluation]:
        there = tuple(Task(task.protocol, _absolute(task.train), _absolute(task.test)) for task in tasks)
        job = JudgeJob(self._encoder, self._config, there, self._folder, self._facts)
        if self._judge is not None:
            return self._judge(job)
        return [judge_one(job, number, self._extract, self._encode_crops) for number in range(len(tasks))]


@dataclass(frozen=True)
class JudgeJob:
    """An encoder that is to be judged by other images than those of its run; the attributes are those of `EncoderSubject`, and its tasks."""

    encoder: nn.Module
    config: ExperimentConfig
    tasks: tuple[Task, ...]
    folder: str | None
    facts: dict[str, Any]


Judge = Callable[[JudgeJob], list[Evaluation]]
"""Does all tasks of such a job, side by side where it can."""


def judge_one(job: JudgeJob, number: int, extract: Extract = extract_here, encode_crops: EncodeCrops = encode_crops_here) -> Evaluation:
    """Does one of the job's tasks; how many images could not be decoded is the detail `bad_images`."""
    task = job.tasks[number]
    data = labelled_data(task.train, task.test, job.config.evaluate.size_px)
    subject = EncoderSubject(job.encoder, job.config, data, extract, job.folder, job.facts, encode_crops=encode_crops)
    found = task.protocol.build().evaluate(subject)
    return replace(found, details={**found.details, "bad_images": data.num_bad})


def _absolute(data: DataConfig) -> DataConfig:
    """The same images by absolute paths, so that other processes find them too."""
    paths = tuple(
        path if storage.is_uri(path) or path.startswith("synthetic") else os.path.abspath(os.path.expanduser(path)) for path in data.paths
    )
    return data.model_copy(update={"path": paths})


_UNCHANGED = "none"


def _ignore(bad: list[BadRow]) -> None:
    """Bad rows were counted when the features were computed."""


def score(config: ExperimentConfig, backbone: nn.Module, data: EvaluationData, protocols: list[ProtocolConfig]) -> list[dict[str, float]]:
    """The protocols' scores of an encoder, one dictionary a protocol; features are computed once.

    Raises:
        TooManyBadRowsError: more images cannot be decoded than `max_bad_fraction` of their data allows.
    """
    subject = EncoderSubject(backbone, config, data)
    evaluations = [protocol.build().evaluate(subject) for protocol in protocols]
    return [{name: score.value for name, score in evaluation.scores.items()} for evaluation in evaluations]


def untrained_backbone(config: ExperimentConfig) -> nn.Module:
    """The encoder as the run's seed initialises it."""
    torch.manual_seed(config.seed)
    return build_backbone(config.backbone)[0]


class RawPixels(nn.Module):
    """The baseline that looks at nothing but pixels: an image's features are its normalised values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)
