"""Encoders with the labeled images that they are evaluated on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ray_sassl.backbones import build_backbone
from ray_sassl.config.schema import EvaluatedConfig
from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import all_labels, all_names, read_groups
from ray_sassl.evaluation import Evaluation, ImageChange, LabeledFeatures, Split, Subject, Task
from ray_sassl.evaluation.crops import training_crops
from ray_sassl.evaluation.datasets import EvaluationData, LabeledImages, labeled_data
from ray_sassl.evaluation.extraction import CropJob, ExtractionJob, Preprocessing
from ray_sassl.evaluation.features import evaluation_mode
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.store import FeatureStore, Provenance, encoder_digest
from ray_sassl.evaluation.workplace import LocalWorkplace, Workplace
from ray_sassl.files import storage
from ray_sassl.files.paths import with_absolute_paths
from ray_sassl.pipeline import decode_images
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import EvaluationView


class EncoderSubject(Subject):
    """An encoder and the labeled images that it is evaluated on.

    Features are computed once, and kept in memory and in a store if there is one.

    Args:
        encoder: (B, 3, S, S) -> (B, F); it is not changed.
        config: The config of the encoder's run; it gives the pixels' mean and deviation, and the size of images.
        data: The images; None if all protocols bring their own images.
        workplace: Where features are computed; by default this process.
        store: Where features are kept; None keeps them only in memory.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: EvaluatedConfig,
        data: EvaluationData | None,
        workplace: Workplace | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self._encoder, self._config, self._images_of_both = encoder, config, data
        self._workplace, self._store = workplace or LocalWorkplace(), store
        self._known: dict[tuple[Split, str], LabeledFeatures] = {}
        self._view = config.evaluate.view
        self.size_px = self._view.size_px
        self.pixel_mean, self.pixel_std = config.train.pixel_mean, config.train.pixel_std
        self.class_names = data.train.index.class_names if data is not None else ()
        stylize = getattr(config, "stylize", None)  # an encoder without a run has none
        self.trained_with = stylize.name if stylize is not None and not stylize.is_identity else None

    @cached_property
    def _digest(self) -> str:
        return encoder_digest(self._encoder)

    @property
    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(self._view, tuple(self.pixel_mean), tuple(self.pixel_std))

    @property
    def _data(self) -> EvaluationData:
        if self._images_of_both is None:
            raise UsageError("this protocol needs evaluate.train and evaluate.test, which are not set")
        return self._images_of_both

    def _images(self, split: Split) -> LabeledImages:
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
                f"the images of {', '.join(images.config.paths)} have no names: Parquet files need a column 'key', as "
                "`data convert` writes it"
            )
        return [names[row] for row in self.labels(split)[0]]

    def features(self, split: Split) -> LabeledFeatures:
        return self._features(split, [None])[0]

    def changed_features(self, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        return self._features("test", changes)

    def _features(self, split: Split, changes: Sequence[ImageChange | None]) -> list[LabeledFeatures]:
        """Features from memory or the store; missing ones are computed in one pass over the images."""
        keys = [change.key if change is not None else _UNCHANGED for change in changes]
        images = self._images(split)
        for key in keys:
            if (split, key) not in self._known and self._store is not None:
                found = self._store.read(self._provenance(images, key))
                if found is not None:
                    self._known[split, key] = found[0]
                    images.quarantine.add(BadRow(**row) for row in found[1]["bad_rows"])
        missing = {key: change for key, change in zip(keys, changes, strict=True) if (split, key) not in self._known}
        if missing:
            job = ExtractionJob(self._encoder, images.index, self._preprocessing, tuple(missing.values()))
            result = self._workplace.features(job)
            images.quarantine.add(result.bad)
            for key, part in zip(missing, result.parts, strict=True):
                self._known[split, key] = self._keep(images, key, part, result.bad)
        return [self._known[split, key] for key in keys]

    def _provenance(self, images: LabeledImages, key: str) -> Provenance:
        return {"encoder": self._digest, "data": images.index.fingerprint, "preprocessing": self._preprocessing.key, "change": key}

    def _keep(self, images: LabeledImages, key: str, part: LabeledFeatures, bad: list[BadRow]) -> LabeledFeatures:
        """The features, from now on those of the store's file if there is a store."""
        if self._store is None:
            return part
        facts = {"data": images.config.model_dump(mode="json"), "bad_rows": [asdict(row) for row in bad]}
        provenance = self._provenance(images, key)
        self._store.write(part, provenance, facts)
        kept = self._store.read(provenance)
        return part if kept is None else kept[0]

    def images(self, split: Split, sample_id: np.ndarray) -> np.ndarray:
        index = self._images(split).index
        groups = np.searchsorted(index.group_first, sample_id, side="right") - 1
        pixels = np.zeros((len(sample_id), self.size_px, self.size_px, 3), np.uint8)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            rows = read_groups(index, [int(group)]).take(sample_id[places])
            views, good = decode_images(rows, index.config.max_pixels, self._view.of, _ignore)
            for place, view in zip(places[good], views, strict=True):
                pixels[place] = np.asarray(view)
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
        return self._workplace.encode_crops(job, train.quarantine.add)

    def outputs(self, network: nn.Module) -> LabeledFeatures:
        return self._outputs(network, (None,))[0]

    def changed_outputs(self, network: nn.Module, changes: Sequence[ImageChange]) -> list[LabeledFeatures]:
        return self._outputs(network, tuple(changes))

    def _outputs(self, network: nn.Module, changes: tuple[ImageChange | None, ...]) -> list[LabeledFeatures]:
        result = self._workplace.features(ExtractionJob(network, self._data.test.index, self._preprocessing, changes, is_exact=True))
        self._data.test.quarantine.add(result.bad)
        return result.parts

    def outputs_on(self, network: nn.Module, data: DataConfig) -> tuple[LabeledFeatures, tuple[str, ...]]:
        images = LabeledImages(data, self._view)
        result = self._workplace.features(ExtractionJob(network, images.index, self._preprocessing, is_exact=True))
        images.quarantine.add(result.bad)
        return result.parts[0], images.index.class_names

    def on(self, train: DataConfig, test: DataConfig) -> Subject:
        return EncoderSubject(self._encoder, self._config, labeled_data(train, test, self._view), self._workplace, self._store)

    def evaluate(self, tasks: Sequence[Task]) -> list[Evaluation]:
        there = tuple(replace(task, train=with_absolute_paths(task.train), test=with_absolute_paths(task.test)) for task in tasks)
        return self._workplace.evaluate(EncoderEvaluation(self._encoder, self._config, there, self._store))


@dataclass(frozen=True)
class EncoderEvaluation:
    """An encoder and tasks to evaluate it on, each with its own images; the other attributes are those of `EncoderSubject`."""

    encoder: nn.Module
    config: EvaluatedConfig
    tasks: tuple[Task, ...]
    store: FeatureStore | None = None

    def evaluate_task(self, number: int, workplace: Workplace) -> Evaluation:
        """The evaluation of one task; its detail `bad_images` is the number of images that could not be decoded."""
        task = self.tasks[number]
        config = self.config if task.view is None else _with_view(self.config, task.view)
        data = labeled_data(task.train, task.test, config.evaluate.view)
        found = task.protocol.build().evaluate(EncoderSubject(self.encoder, config, data, workplace, self.store))
        return replace(found, details={**found.details, "bad_images": data.num_bad})

    def for_other_machines(self) -> EncoderEvaluation:
        """The job without a store in a local folder, since other nodes would keep features on their own disks."""
        return self if self.store is None or storage.is_uri(self.store.folder) else replace(self, store=None)


_UNCHANGED = "none"


def _with_view(config: EvaluatedConfig, view: EvaluationView) -> EvaluatedConfig:
    changed = {"size_px": view.size_px, "crop": view.crop, "interpolation": view.interpolation}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changed)})


def _ignore(bad: list[BadRow]) -> None:
    """Bad rows are counted when features are computed."""


def score(config: EvaluatedConfig, backbone: nn.Module, data: EvaluationData, protocols: list[ProtocolConfig]) -> list[dict[str, float]]:
    """An encoder's scores, one dictionary per protocol; features are computed once.

    Raises:
        TooManyBadRowsError: more images cannot be decoded than `max_bad_fraction` of their data allows.
    """
    subject = EncoderSubject(backbone, config, data)
    evaluations = [protocol.build().evaluate(subject) for protocol in protocols]
    return [{name: score.value for name, score in evaluation.scores.items()} for evaluation in evaluations]


def untrained_backbone(config: EvaluatedConfig) -> nn.Module:
    """The encoder as the run's seed initializes it."""
    torch.manual_seed(config.seed)
    return build_backbone(config.backbone)[0]


class RawPixels(nn.Module):
    """The baseline without an encoder: an image's features are its normalized pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)
