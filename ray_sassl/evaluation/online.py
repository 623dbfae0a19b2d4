"""Scores of an encoder during its training, on validation images, and at its end once on test images; of either a part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from torch import nn

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import FixedFeatures, LabeledFeatures
from ray_sassl.evaluation.datasets import LabeledImages, check_same_names, selection_images
from ray_sassl.evaluation.features import evaluation_mode, features_of
from ray_sassl.evaluation.protocols.knn import Config as KnnConfig
from ray_sassl.evaluation.protocols.linear import Config as LinearConfig
from ray_sassl.process.ending import told
from ray_sassl.process.errors import UsageError
from ray_sassl.train.context import Context, buffers_of_rank_zero, from_rank_zero, on_any_rank, to_rank_zero
from ray_sassl.train.loop import EvaluationStoppedError

T = TypeVar("T")

log = logging.getLogger(__name__)

_UNSEEN_SHARE = 0.02

ONLINE_SCORES: dict[str, KnnConfig | LinearConfig] = {"knn": KnnConfig(), "linear": LinearConfig()}
"""The choices of `evaluate.online`; each is logged as NAME_top1, and in the last line as test_NAME_top1."""


class OnlineScores:
    """Scores of a backbone as `evaluate.online` says, on a part of the labeled images.

    All ranks compute features, each of every W-th batch of images, and rank 0 judges them; batches are those of a single rank, so scores
    equal those of one rank to the bit, where the ranks' devices and numbers of threads are alike. What a rank cannot compute, rank 0 does.
    Every rank must call the same functions at the same steps; a stop that one rank knows of ends them on all.

    The test images are not looked for before `test` is called.
    """

    def __init__(self, config: ExperimentConfig, context: Context) -> None:
        self._evaluate, self._context = config.evaluate, context
        self._mean, self._std = config.train.pixel_mean, config.train.pixel_std
        self._names = list(ONLINE_SCORES) if config.evaluate.online == "both" else [config.evaluate.online]
        self._selected: tuple[LabeledImages, ...] | None = None

    @property
    def _selection(self) -> tuple[LabeledImages, ...] | None:
        """Train and validation images; None on other ranks if rank 0 cannot find them.

        Raises:
            UsageError: on rank 0, as in `selection_images`.
        """
        if self._selected is None:
            self._selected = self._shared(lambda: selection_images(self._evaluate, self._context.world_size))
        return self._selected

    def validation(self, backbone: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """`knn_top1`, `linear_top1` or both, of validation images by train images that are not among them; nothing on ranks but the first.

        Args:
            backbone: (B, 3, H, W) -> (B, F), on the device.
            check: Called with each batch of images; it may raise an `EvaluationStoppedError` to end the evaluation.
        """
        return {f"{name}_top1": value for name, value in self._scores(backbone, self._selection, check).items()}

    def test(self, backbone: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The same of test images, for the last line of a run; empty where there are none, which is said in the log."""
        test = self._evaluate.test
        if test is None or not self._evaluate.final_test:
            return {}

        def images() -> tuple[LabeledImages]:
            found = LabeledImages(test, self._evaluate.view, self._evaluate.online_rows, keep_bytes=0, world_size=self._context.world_size)
            assert self._selected is not None
            check_same_names(self._selected[0].index, found.index)
            return (found,)

        try:
            train, measured = self._selection, None
            measured = self._shared(images) if train is not None else None
            found = self._scores(backbone, (train[0], measured[0]) if train is not None and measured is not None else None, check)
        except (UsageError, OSError) as error:
            log.warning(
                "The run is complete, and has no scores on evaluate.test: %s. `ray-sassl evaluate RUN knn` gives them once it is there.",
                error,
            )
            return {}
        return {f"test_{name}_top1": value for name, value in found.items()}

    def _scores(self, backbone: nn.Module, sets: tuple[LabeledImages, ...] | None, check: Callable[[], None]) -> dict[str, float]:
        if sets is None:
            return {}
        with buffers_of_rank_zero(backbone, self._context), evaluation_mode(backbone):
            shares = [self._shares(backbone, images, check) for images in sets]
            found, error = self._agreed(lambda: self._judged(backbone, sets, shares, check) if self._context.rank == 0 else {})
        if error is not None:
            raise error
        return found or {}

    def _shared(self, make: Callable[[], tuple[LabeledImages, ...]]) -> tuple[LabeledImages, ...] | None:
        """What rank 0 makes, for this rank; None on the other ranks where rank 0 raises an error. So data are listed once."""
        found = error = None
        if self._context.rank == 0:
            try:
                found = make()
                for images in found:
                    images.index  # noqa: B018 - is found here
            except Exception as caught:  # noqa: BLE001 - raised once the others know
                found, error = None, caught
        found = from_rank_zero(found) if self._context.world_size > 1 else found
        if error is not None:
            raise error
        for images in found or ():
            images.rank = self._context.rank
            if self._context.rank > 0:
                images.index = _mapped(images.index)
        return found

    def _agreed(self, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """What this rank's work gives, or its error.

        Raises:
            EvaluationStoppedError: on all ranks, if one of them was stopped.
        """
        found = error = None
        try:
            found = work()
        except Exception as caught:  # noqa: BLE001 - the other ranks wait for this one
            error = caught
        if any(on_any_rank([isinstance(error, EvaluationStoppedError)], self._context)):
            raise EvaluationStoppedError
        return found, error

    def _shares(self, backbone: nn.Module, images: LabeledImages, check: Callable[[], None]) -> list[_Share]:
        """Each rank's share on rank 0; nothing on the others."""
        batches, mine, error = self._batches(backbone, images, images.rank, check), [], None
        for _ in range(images.num_rounds + 1):  # the last one ends the iteration
            part, error = self._agreed(lambda: next(batches, None)) if error is None else (self._agreed(lambda: None)[0], error)
            mine += [part] if part is not None else []
        # As text, since some exceptions can be pickled and not be read again; rank 0 raises its own.
        shares = to_rank_zero(_Share(mine, images.quarantine.rows, None if error is None else told(error)), self._context)
        return [replace(shares[0], error=error), *shares[1:]] if shares else []

    def _batches(self, backbone: nn.Module, images: LabeledImages, rank: int, check: Callable[[], None]) -> Iterator[LabeledFeatures]:
        for batch in images.batches(rank):
            check()
            if not len(batch.labels):  # none of its images could be decoded
                continue
            features = features_of(backbone, batch.images, self._mean, self._std, self._context.device)
            yield LabeledFeatures(features, batch.labels.astype(np.int64), batch.sample_id)

    def _judged(
        self, backbone: nn.Module, sets: tuple[LabeledImages, ...], shares: list[list[_Share]], check: Callable[[], None]
    ) -> dict[str, float]:
        train, measured = (self._joined(backbone, images, parts, check) for images, parts in zip(sets, shares, strict=True))
        warn_unseen_classes(train.labels, measured.labels)
        subject = FixedFeatures(train, measured)
        found = {}
        for name in self._names:
            check()
            found[name] = ONLINE_SCORES[name].build().evaluate(subject).scores["top1"].value
        return found

    def _joined(self, backbone: nn.Module, images: LabeledImages, shares: list[_Share], check: Callable[[], None]) -> LabeledFeatures:
        """The features of all shares, in the order of the images."""
        parts: list[LabeledFeatures] = []
        for rank, share in enumerate(shares):
            if isinstance(share.error, Exception):
                raise share.error
            if share.error is not None:
                log.warning("Worker %d cannot compute its share of the scores, so the first worker does. %s", rank, share.error)
                parts += self._batches(backbone, images, rank, check)
            else:
                parts += share.parts
                images.quarantine.add(share.bad)
        if not parts:
            raise UsageError("there are no images to compute features of")
        joined = LabeledFeatures(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(LabeledFeatures)))
        return joined.take(np.argsort(joined.sample_id, kind="stable"))


@dataclass(frozen=True)
class _Share:
    """What one rank brings: features by batch, the rows that it could not decode, and the error that has ended it, or its text."""

    parts: list[LabeledFeatures]
    bad: list[BadRow]
    error: Exception | str | None


def _mapped(index: Index) -> Index:
    """The index, in a file that is mapped into memory and has no name; or as it is where no file can be written, as on a full disk, since
    the other ranks would wait for one that ends here."""
    try:
        with TemporaryDirectory() as folder:
            index.save(path := f"{folder}/index.arrow")
            return Index.load(path)
    except (OSError, UsageError) as error:
        log.warning("This worker keeps its index of the labeled images in memory of its own: %s", told(error))
        return index


def online_scores(config: ExperimentConfig, context: Context) -> OnlineScores | None:
    """What scores a backbone during a run, or None if there are no labeled images to do so."""
    return None if config.evaluate.train is None else OnlineScores(config, context)


@lru_cache(maxsize=1)
def _warn_once(text: str) -> None:
    log.warning(text)


def warn_unseen_classes(train: np.ndarray, test: np.ndarray) -> None:
    """Warn once if more than one image in fifty of those measured on has a class that no train image has; labels are (N,) and (M,)."""
    unseen = float(np.isin(test, train, invert=True).mean())
    if unseen > _UNSEEN_SHARE:
        _warn_once(
            f"{unseen:.0%} of the images on which the run is scored have a class that none of the train images used has, so they are "
            "always wrong: the row groups of the labeled images are ordered by class. Raise evaluate.online_rows, or "
            "write shards in which classes are mixed."
        )
