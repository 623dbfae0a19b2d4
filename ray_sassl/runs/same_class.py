"""How often images that a run compares, or mixes, are of one class, where its images have labels: they are never trained on.

In data ordered by class, a batch has few classes: negatives are then often of the sample's own class, and style partners as well.
"""

from __future__ import annotations

import logging
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
from torch import Tensor

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import NO_LABEL
from ray_sassl.data.plan import Plan
from ray_sassl.data.reading import all_labels
from ray_sassl.nn.method import Method
from ray_sassl.nn.queue import EmbeddingQueue
from ray_sassl.pipeline import ViewSource
from ray_sassl.process.errors import UsageError
from ray_sassl.style.augment import style_partners
from ray_sassl.views.keyed import DrawKey

log = logging.getLogger(__name__)

_WINDOWS = 16
"""So many windows of an epoch are looked at for style partners: the first, which are drawn from the whole data set as all are."""


class SameClass:
    """The rates for the record of a run; labels are read when they are first needed.

    `same_class_batch` is the share of pairs of different images of a part of the global batch that are of one class (the negatives of
    SimCLR, NNCLR and MoCo v3), `same_class_queue` that of queries and their negatives in MoCo's queue, `same_class_neighbors` that of
    samples and the nearest neighbors that feature augmentation took for them, `same_class_partners` that of images and those that gave
    their styles.
    """

    def __init__(self, config: ExperimentConfig, source: ViewSource) -> None:
        self._config, self._source = config, source

    @cached_property
    def labels(self) -> np.ndarray:
        """(num_rows,) int64 by sample id, `NO_LABEL` where there is none."""
        index = self._source.index
        try:
            return all_labels(index)
        except (OSError, UsageError) as error:  # no reason to end a run that does not need them
            log.warning("The same-class rates of this run are left out, since its labels cannot be read: %s", error)
            return np.full(index.num_rows, NO_LABEL, np.int64)

    def __call__(self, method: Method, sample_id: Tensor, batch_ids: Tensor, epoch: int) -> dict[str, float]:
        """The rates by name, those that there are.

        Args:
            sample_id: (B,) int64, this worker's images of the last part of a batch.
            batch_ids: (N,) int64, those of all workers.
            epoch: Whose style partners are looked at.
        """
        if not (self.labels != NO_LABEL).any():
            return {}
        batch = batch_ids.cpu().numpy()
        rates = {"same_class_batch": same_class_pairs(self.labels, batch, batch)}
        queue = getattr(method, "queue", None)
        if isinstance(queue, EmbeddingQueue):
            rates["same_class_queue"] = same_class_pairs(self.labels, batch, queue.sample_id.cpu().numpy())
        for module in method.modules():
            if (neighbors := getattr(module, "neighbor_ids", None)) is not None:
                rates["same_class_neighbors"] = _same_class_rows(self.labels, sample_id.cpu().numpy(), neighbors.cpu().numpy())
        if not self._config.stylize.is_identity and self._config.sassl.style_source == "in_batch":
            rates["same_class_partners"] = self._partners(epoch)
        return {name: rate for name, rate in rates.items() if rate is not None}

    @lru_cache(maxsize=1)  # noqa: B019 - one object a run
    def _partners(self, epoch: int) -> float | None:
        """Of images and the partners that they are stylized with, in some windows of the epoch; damaged images count as whole ones."""
        plan: Plan = self._source.plan
        view = next(number for number in range(2 + self._config.views.num_small) if self._config.sassl.stylizes(number))
        rows, partners = [], []
        for window in islice(plan.each_window(epoch), _WINDOWS):
            for block in plan.blocks(window):
                rows.append(block.sample_id)
                partners.append(block.sample_id[style_partners(DrawKey(self._config.seed, epoch, block.sample_id, view))])
        return _same_class_rows(self.labels, np.concatenate(rows), np.concatenate(partners)[:, None])


def same_class_pairs(labels: np.ndarray, some: np.ndarray, others: np.ndarray) -> float | None:
    """The share of pairs of labeled images, one of each side, that are of one class; pairs of an image with itself do not count. None if
    there are no pairs.

    Args:
        labels: (num_rows,) int64 by sample id.
        some: (N,) int64 sample ids, no two equal.
        others: (M,) int64 sample ids; those below 0 are no images.
    """
    some, others = (ids[(ids >= 0) & (labels[ids] != NO_LABEL)] for ids in (some, others))
    if not len(some) or not len(others):
        return None
    num_classes = int(labels.max()) + 1
    counts, other_counts = (np.bincount(labels[ids], minlength=num_classes) for ids in (some, others))
    own = int(np.isin(others, some).sum())
    num_pairs = len(some) * len(others) - own
    return (int(counts @ other_counts) - own) / num_pairs if num_pairs else None


def _same_class_rows(labels: np.ndarray, rows: np.ndarray, others: np.ndarray) -> float | None:
    """The share of the others (N, K) int64 of labeled rows (N,) that are of their row's class; None if none is labeled."""
    counted = (others >= 0) & (labels[others] != NO_LABEL) & (labels[rows] != NO_LABEL)[:, None]
    return float((labels[others] == labels[rows][:, None])[counted].mean()) if counted.any() else None
