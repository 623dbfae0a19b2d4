"""Data sets that encoders are transferred to: their descriptions (`cards`), their files (`layouts`), and Parquet copies (`prepare`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Metric = Literal["top1", "mean_per_class", "quadratic_kappa"]
"""`top1`: share of correct predictions. `mean_per_class`: mean over classes of that share. `quadratic_kappa`: Cohen's kappa with quadratic
weights, for ordered classes."""

Half = Literal["train", "test"]


@dataclass(frozen=True)
class Samples:
    """Labeled images on disk.

    Attributes:
        labels: The class of each.
        read: Returns the bytes and the name of the image at a place; a file's bytes are unchanged.
        class_names: The name of each class.
    """

    labels: list[int]
    read: Callable[[int], tuple[bytes, str]]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """A data set and how the papers use it.

    Attributes:
        name: The name that users type.
        title: The data set's full name.
        metric: The score that is reported.
        num_classes: Number of classes; labels start at 0.
        num_train: Images of the train split.
        num_test: Images of the test split.
        splits: Which images the splits consist of.
        license: Its terms, in brief.
        source: Where to get it.
        paper: Its authors and paper.
        layout: The files in the folder that `data fetch --from` takes.
        read: Reads a split from that folder, after a download into it if requested.
        by_hand: Why this program cannot download it and how to get it, or None if it can.
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
