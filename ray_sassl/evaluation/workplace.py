"""Where evaluations compute: in this process, or on a cluster (`orchestrate/batch/features.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

import numpy as np
import torch

from ray_sassl.evaluation import Evaluation, Progress, Task, no_progress
from ray_sassl.evaluation.crops import labeled_batches
from ray_sassl.evaluation.extraction import CropEncoder, CropJob, Extracted, ExtractionJob, Extractor, KeptImages, joined
from ray_sassl.pipeline import OnBad


class EvaluationJob(Protocol):
    """An encoder, and tasks to evaluate it on; `subject.EncoderEvaluation` is one."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def evaluate_task(self, number: int, workplace: Workplace) -> Evaluation:
        """The evaluation of one task, computed at the workplace."""
        ...

    def for_other_machines(self) -> EvaluationJob:
        """The job without what only this machine can reach."""
        ...


class Workplace(ABC):
    """Computes the expensive parts of an evaluation."""

    is_remote: ClassVar[bool] = False
    """Whether other processes do the work, so that protocols that train the encoder should run there."""

    @abstractmethod
    def features(self, job: ExtractionJob) -> Extracted:
        """The features of all images of the job, in the order of the images.

        Raises:
            UsageError: no image can be decoded, or the cluster can never offer what the work needs.
        """

    @abstractmethod
    def encode_crops(self, job: CropJob, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of features (B, F) float32 and labels (B,) of the job's crops, epoch by epoch; the order is the same everywhere.

        Raises:
            UsageError: the cluster can never offer what the work needs.
        """

    @abstractmethod
    def evaluate(self, job: EvaluationJob) -> list[Evaluation]:
        """The evaluations of the job's tasks, in their order; tasks run in parallel if there are several processes.

        Raises:
            UsageError: a task raises it, or the cluster can never offer what the work needs.
        """


class LocalWorkplace(Workplace):
    """This process.

    Args:
        device: Where encoders compute; by default the GPU if this machine has one.
        num_threads: Threads for decoding; by default as many as torch uses.
        kept_bytes: Decoded images of earlier jobs are kept up to this size, so that later jobs do not decode them again.
        progress: Shows the progress of each extraction.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        num_threads: int | None = None,
        *,
        kept_bytes: int = 2**30,
        progress: Progress = no_progress,
    ) -> None:
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._num_threads = num_threads or max(1, torch.get_num_threads())
        self._kept, self._progress = KeptImages(kept_bytes), progress

    def features(self, job: ExtractionJob) -> Extracted:
        extractor = Extractor(job, self._device, self._num_threads, self._kept)
        changed = f", {len(job.changes)} versions of each image" if len(job.changes) > 1 else ""
        with self._progress(f"features{changed}", job.index.num_rows) as advance:

            def portions() -> Iterator[Extracted]:
                for groups in job.items:
                    yield extractor.portion(groups)
                    advance(int(job.index.group_rows[groups].sum()))

            return joined(job, portions())

    def encode_crops(self, job: CropJob, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        encoder = CropEncoder(job, self._device, self._num_threads)
        for epoch in range(job.epochs):
            yield from labeled_batches(encoder.pieces(encoder.crops.portions(epoch), on_bad), job.batch_size)

    def evaluate(self, job: EvaluationJob) -> list[Evaluation]:
        return [job.evaluate_task(number, self) for number in range(len(job.tasks))]
