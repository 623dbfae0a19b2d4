"""Data sets that encoders are transferred to: what each is (`cards`), its files (`layouts`), and as Parquet in the cache (`prepare`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Metric = Literal["top1", "mean_per_class", "quadratic_kappa"]
"""`top1`: share of correct predictions. `mean_per_class`: mean over classes of that share. `quadratic_kappa`: Cohen's kappa with quadratic
weights, for classes that are steps of a scale."""

Half = Literal["train", "test"]


@dataclass(frozen=True)
class Samples:
    """Labeled images on disk.

    Attributes:
        labels: The class of each.
        read: From an image's place to its bytes and its name; a file's bytes are as they are.
        class_names: The name of each class.
    """

    labels: list[int]
    read: Callable[[int], tuple[bytes, str]]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """What a data set is, and how the papers use it.

    Attributes:
        name: What users type.
        title: Its name.
        metric: The score that is reported.
        num_classes: Labels count from 0 to one less.
        num_train: Images of the train split.
        num_test: Images of the test split.
        splits: Which images those are.
        license: Its terms, in brief.
        source: Where it comes from.
        paper: Who made it.
        layout: The files below the folder that `data fetch --from` takes.
        read: A split of it, from that folder; downloads into it first where asked to.
        by_hand: Why it cannot be downloaded by this program and how to get it, or None where it can.
        also: Further metrics that are reported.
    """

    name: str
    title: str
    metric: Metric
    num_classes: int
    num_train: int
    num_test: int
    splits: str
    license: str
    source: str
    paper: str
    layout: str
    read: Callable[[Path, Half, bool], Samples]
    by_hand: str | None = None
    also: tuple[Metric, ...] = ()

    def num_images(self, half: Half) -> int:
        return self.num_train if half == "train" else self.num_test
