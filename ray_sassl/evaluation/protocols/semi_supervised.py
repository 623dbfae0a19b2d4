"""Semi-supervised learning: the whole network fine-tuned on a small share of the train labels (`training.py` says how).

SimCLR (Chen et al. 2020, arXiv 2002.05709, section 6 and appendix B.5) and BYOL use 1 % and 10 % of ImageNet's labels, in fixed splits
published by SimCLR: text files with one file name per line. Such files are used unchanged; for other data sets a split is drawn by the
seed, with the same share of each class and at least one image of it.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from ray_sassl.data import IMAGE_EXTENSIONS
from ray_sassl.evaluation import Evaluation, Subject
from ray_sassl.evaluation.protocols import Protocol
from ray_sassl.evaluation.splits import stratified
from ray_sassl.evaluation.training import TrainingConfig, evaluate_by_training
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

_SHOWN = 3


class Config(TrainingConfig):
    """Fine-tuning on a few of the labels; the other fields are those of `TrainingConfig`.

    Attributes:
        subsets: Each is a share of the train images, or the path of a split file with one name of a train image per line.
        epochs: Passes over each subset, in their order, or one number for all; SimCLR's for 1 % and 10 %.
    """

    subsets: Annotated[tuple[Annotated[float, Field(gt=0, le=1)] | str, ...], Field(min_length=1)] = (0.01, 0.1)
    epochs: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] = (60, 30)

    @model_validator(mode="after")
    def _one_number_of_epochs_a_subset(self) -> Self:
        if isinstance(self.epochs, tuple) and len(self.epochs) != len(self.subsets):
            raise ValueError(f"epochs has {len(self.epochs)} numbers for {len(self.subsets)} subsets; give one for each, or one for all")
        names = [subset_name(subset) for subset in self.subsets]
        if len(set(names)) != len(names):
            raise ValueError(f"two subsets have the same name: {', '.join(names)}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=1)

    def build(self) -> SemiSupervised:
        return SemiSupervised(self)


class SemiSupervised(Protocol):
    """The scores of each subset, such as `1_percent_top1`; predictions if there is only one subset."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        config = self.config
        sample_id, labels = subject.labels("train")
        epochs = config.epochs if isinstance(config.epochs, tuple) else (config.epochs,) * len(config.subsets)
        chosen = [_rows(subject, subset, labels, config.seed) for subset in config.subsets]
        found = {
            subset_name(subset): evaluate_by_training(subject, sample_id[rows], labels[rows], num_epochs, config)
            for subset, rows, num_epochs in zip(config.subsets, chosen, epochs, strict=True)
        }
        return Evaluation(
            {f"{name}_{score}": value for name, evaluation in found.items() for score, value in evaluation.scores.items()},
            {f"{name}_{figure}": content for name, evaluation in found.items() for figure, content in evaluation.figures.items()},
            {name: evaluation.details for name, evaluation in found.items()},
            next(iter(found.values())).predictions if len(found) == 1 else None,
        )


def subset_name(subset: float | str) -> str:
    """`1_percent` of 0.01, and `1percent` of `splits/1percent.txt`."""
    return storage.name_of(subset).partition(".")[0] if isinstance(subset, str) else f"{100 * subset:g}_percent"


def _rows(subject: Subject, subset: float | str, labels: np.ndarray, seed: int) -> np.ndarray:
    """Places among the train images."""
    if isinstance(subset, str):
        return rows_of_split_file(subset, subject.names("train"))
    return np.flatnonzero(stratified(labels, subset, seed))


def rows_of_split_file(path: str, names: list[str]) -> np.ndarray:
    """The places (n,) int64, ascending, of the images that a split file names; folders and extensions are ignored.

    Raises:
        UsageError: the file is missing or empty, or it names an image twice or an unknown one.
    """
    try:
        lines = [line.strip() for line in storage.read_text(path).splitlines()]
    except FileNotFoundError as error:
        raise UsageError(f"there is no split file {path}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a valid split file: it is not text") from error
    wanted = [_stem(line) for line in lines if line]
    if not wanted:
        raise UsageError(f"{path} names no images")
    place = {_stem(name): number for number, name in enumerate(names)}
    if missing := [name for name in wanted if name not in place]:
        raise UsageError(
            f"{len(missing):,} of the {len(wanted):,} images that {path} names are not among the {len(names):,} labeled train images, "
            f"such as {', '.join(missing[:_SHOWN])}; train images have names like {', '.join(names[:_SHOWN])}"
        )
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"{path} names {len(wanted) - len(set(wanted)):,} images twice")
    if len(place) != len(names):
        raise UsageError(f"{len(names) - len(place):,} train images share their name with another, so {path} does not say which are meant")
    return np.sort(np.array([place[name] for name in wanted], np.int64))


def _stem(name: str) -> str:
    """`n01440764_10026` of `train/n01440764/n01440764_10026.JPEG` and of `shard-000001.tar#n01440764_10026`."""
    path = PurePosixPath(name.replace("\\", "/").rpartition("#")[2])
    return path.stem if path.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS else path.name
