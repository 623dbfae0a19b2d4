"""How well a run's batches will be mixed: the classes in a batch and its pairs of the same class, as the plan deals them, against a uniform
shuffle. No image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ray_sassl.data import NO_LABEL, DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.plan import Plan, Window, default_window_bytes, plan_of
from ray_sassl.data.readers.parquet import labels_of_groups
from ray_sassl.data.reading import all_labels
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

_BATCHES, _OF_A_WINDOW, _WINDOWS, _MOST_WINDOWS = 64, 16, 4, 200
_GROUPS, _ROWS = 512, 50_000
"""Row groups (Parquet) or rows (other formats) whose classes tell what a uniform shuffle would have."""
_MANY_TIMES, _FEW_PAIRS = 3, 0.001


@dataclass(frozen=True)
class Mixing:
    """The classes of a run's batches.

    Attributes:
        batch_size: Rows of a batch.
        by: What the classes are: `labels`, `folders`, or `files`, the shard that a row is in.
        num_batches: Batches that were looked at, from several windows of the first epoch.
        classes, fewest_classes: Mean and smallest number of classes in a batch.
        same_class_pairs: The share of pairs of a batch that are of the same class.
        uniform_classes, uniform_pairs: The same, as expected of batches drawn from the whole data set.
        window_bytes: Encoded images that are shuffled together.
        piece_rows: Rows that lie together and are read together, at most.
        remedy: What would mix the data better, if they are not mixed well.
    """

    batch_size: int
    by: str
    num_batches: int
    classes: float
    fewest_classes: int
    same_class_pairs: float
    uniform_classes: float
    uniform_pairs: float
    window_bytes: int
    piece_rows: int
    remedy: str

    @property
    def is_poor(self) -> bool:
        """Whether a batch has more than three times as many pairs of the same class as in a uniform shuffle."""
        return self.same_class_pairs > max(_MANY_TIMES * self.uniform_pairs, self.uniform_pairs + _FEW_PAIRS)

    def in_words(self) -> str:
        """One line; with the remedy if the mixing is poor."""
        window = f"{self.window_bytes / 1e9:.2g} GB are shuffled together."
        if min(self.same_class_pairs, self.uniform_pairs) >= 1:
            return f"No {self.by} tell the images apart, so how well batches are mixed is not known; {window}"
        text = (
            f"Batches of {self.batch_size:,} have rows of {self.classes:.0f} {self.by} (a uniform shuffle: {self.uniform_classes:.0f}) and "
            f"{self.same_class_pairs:.2%} pairs of the same one ({self.uniform_pairs:.2%}); {window}"
        )
        return f"{text} {self.remedy}" if self.is_poor else text


def mixing_of(index: Index, data: DataConfig, batch_size: int = 256, seed: int = 0) -> Mixing:
    """The mixing of the index's rows as a run with this config deals them.

    Raises:
        UsageError: there are fewer rows than a batch.
    """
    if not 2 <= batch_size <= index.num_rows:
        raise UsageError(f"batches of {batch_size:,} cannot be made of {index.num_rows:,} rows; give --batch from 2 to {index.num_rows:,}")
    plan = plan_of(index, data, seed)
    windows, batches = _first_batches(plan, batch_size)
    sampled = _sample(index, plan, windows)
    class_of, by = _classes(index, data, np.union1d(np.concatenate(batches), sampled))
    counts = [np.unique(class_of(batch), return_counts=True)[1] for batch in batches]
    pairs = [float((number * (number - 1)).sum() / (batch_size * (batch_size - 1))) for number in counts]
    uniform_classes, uniform_pairs = _uniform(class_of(sampled), plan.group_of(sampled), batch_size, len(sampled) == index.num_rows)
    return Mixing(
        batch_size=batch_size,
        by=by,
        num_batches=len(batches),
        classes=float(np.mean([len(number) for number in counts])),
        fewest_classes=min(len(number) for number in counts),
        same_class_pairs=float(np.mean(pairs)),
        uniform_classes=uniform_classes,
        uniform_pairs=uniform_pairs,
        window_bytes=plan.mean_window_bytes,
        piece_rows=plan.piece_rows,
        remedy=_remedy(index, data, plan, batch_size),
    )


def _first_batches(plan: Plan, batch_size: int) -> tuple[list[Window], list[np.ndarray]]:
    """Some windows of the first epoch, and batches (batch_size,) of their rows, at least one."""
    windows: list[Window] = []
    batches: list[np.ndarray] = []
    rest = np.empty(0, np.int64)
    for window in islice(plan.each_window(0), _MOST_WINDOWS + batch_size):
        windows.append(window)
        rest = np.concatenate([rest, *(block.sample_id for block in plan.blocks(window))])
        whole = len(rest) // batch_size
        batches += np.split(rest[: whole * batch_size], whole)[:_OF_A_WINDOW] if whole else []
        rest = rest[whole * batch_size :]
        if len(batches) >= _BATCHES and len(windows) >= _WINDOWS:
            break
    return windows, batches


def _sample(index: Index, plan: Plan, windows: Sequence[Window]) -> np.ndarray:
    """(n,) int64, ascending: rows of all places of the data set; if there are not too many, all."""
    draws = np.random.default_rng(0)
    if index.format != "parquet":
        if index.num_rows <= _ROWS:
            return np.arange(index.num_rows)
        return np.unique(draws.integers(0, index.num_rows, _ROWS))
    groups = np.flatnonzero(index.group_rows > 0)
    if len(groups) > _GROUPS:
        known = np.unique(plan.group_of(np.concatenate([plan.piece_runs(window.pieces)[0] for window in windows])))
        more = draws.permutation(np.setdiff1d(groups, known))[: max(0, _GROUPS - len(known))]
        groups = np.union1d(known, more)
    return np.concatenate([index.sample_ids(int(group)) for group in groups])


class _ClassOf:
    """The class of each of some rows, as a number."""

    def __init__(self, ids: np.ndarray, classes: np.ndarray) -> None:
        self._ids, self._classes = ids, classes

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self._classes[np.searchsorted(self._ids, ids)]


def _classes(index: Index, data: DataConfig, ids: np.ndarray) -> tuple[_ClassOf, str]:
    """The classes of the rows (n,), ascending, and what they are."""
    group = np.searchsorted(index.group_first, ids, side="right") - 1
    if data.label_column is not None:
        if index.format == "parquet":
            groups, place = np.unique(group, return_inverse=True)
            of_group = labels_of_groups(index, groups.tolist())
            first = np.cumsum([0, *(len(labels) for labels in of_group)])
            labels = np.concatenate(of_group)[first[place] + ids - index.group_first[group]]
        else:
            labels = all_labels(index)[ids]
        if (labels != NO_LABEL).any():
            return _ClassOf(ids, labels), "labels"
    files = index.groups["file"].to_numpy()[group]
    if index.format != "folder":
        return _ClassOf(ids, files), "files"
    folders = [storage.parent(index.file_path(int(row))) for row in ids]
    return _ClassOf(ids, np.unique(folders, return_inverse=True)[1]), "folders"


def _uniform(classes: np.ndarray, group: np.ndarray, batch_size: int, is_whole: bool) -> tuple[float, float]:
    """The expected classes of a batch that is drawn from the whole data set, and its share of pairs of the same class.

    Args:
        classes, group: (n,) the classes of rows and the row groups in which they lie.
        is_whole: They are all rows of the data set. Otherwise pairs within one group say nothing, as the sample has whole groups.
    """
    _, counts = np.unique(classes, return_counts=True)
    num = len(classes)
    if is_whole:
        chance = counts / num
        return float((1 - (1 - chance) ** batch_size).sum()), float((counts * (counts - 1)).sum() / (num * (num - 1)))
    _, within = np.unique(np.stack([classes, group]), axis=1, return_counts=True)
    _, sizes = np.unique(group, return_counts=True)
    pairs = float(((counts.astype(float) ** 2).sum() - (within**2).sum()) / max(float(num) ** 2 - (sizes**2).sum(), 1.0))
    many = 1 / max(pairs, 1 / num)  # so many classes of one size have these pairs
    return many * (1 - (1 - 1 / many) ** batch_size), pairs


def _remedy(index: Index, data: DataConfig, plan: Plan, batch_size: int) -> str:
    shuffled = f"rewrite it once in a mixed order: ray-sassl data convert {' '.join(data.paths)} DST --format webdataset --shuffle 0"
    wanted = max(default_window_bytes(index, data.block_rows, bounded=False), plan.mean_piece_bytes * batch_size)
    if plan.is_by_rows or plan.mean_window_bytes < 0.9 * wanted:
        what = "data.shuffle_window=null" if plan.is_by_rows else f"data.shuffle_gb={wanted / 1e9:.2g}"
        why = f"Row groups of {plan.piece_rows:,} rows cannot be read in parts: s" if index.format == "parquet" else "S"
        return f"{why}huffle more of the data set together ({what}), or {shuffled}"
    return f"The data set lies in the order of its classes; {shuffled}"
