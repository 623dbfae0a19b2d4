"""An evaluation's work on a pool of Ray actors. Ray must have been initialized.

Each actor has the encoder. It computes features of some row groups, features of a portion of an epoch's crops, or a whole task with another
data set. The successor of an actor that dies does its work again. A job is sent as a reference that each actor resolves once: an argument
of the actor's constructor would be lost with the node that holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import Evaluation, Progress, no_progress
from ray_sassl.evaluation.crops import CropPortion, labeled_batches
from ray_sassl.evaluation.extraction import CropEncoder, CropJob, Extracted, ExtractionJob, Extractor, joined
from ray_sassl.evaluation.workplace import EvaluationJob, LocalWorkplace, Workplace
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig, actor_pool, in_order, num_wanted, spread
from ray_sassl.orchestrate.batch.shared_index import shared_index
from ray_sassl.orchestrate.runtime.capacity import is_one_machine
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.pipeline import OnBad


class EvaluationWorker:
    """One actor with its job.

    The job's reference is passed in a list, so that Ray does not fetch the job at each call.
    """

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self._num_threads = max(1, int(num_cpus))
        self._device = torch.device(device_type(num_gpus))
        self._held: ray.ObjectRef | None = None
        self._job: Any = None
        torch.set_num_threads(self._num_threads)

    def portion(self, held: list[ray.ObjectRef], groups: Sequence[int]) -> Extracted:
        """The features of these row groups."""
        if self._held != held[0]:
            self._job = Extractor(cast(ExtractionJob, ray.get(held[0])), self._device, self._num_threads)
            self._held = held[0]
        return self._job.portion(groups)

    def crops(self, held: list[ray.ObjectRef], portion: CropPortion) -> tuple[np.ndarray, np.ndarray, list[BadRow]]:
        """Features and labels of a portion of the job's crops, and the rows that could not be decoded."""
        if self._held != held[0]:
            self._job = CropEncoder(cast(CropJob, ray.get(held[0])), self._device, self._num_threads)
            self._held = held[0]
        return self._job.portion(portion)

    def evaluate_task(self, held: list[ray.ObjectRef], number: int) -> Evaluation:
        """The evaluation of one task of the job."""
        if self._held != held[0]:
            self._job, self._held = ray.get(held[0]), held[0]
        return self._job.evaluate_task(number, LocalWorkplace(self._device, self._num_threads, kept_bytes=0))


class EvaluationPool(Workplace):
    """Actors that do all jobs of an evaluation; they are started when there is work for them."""

    is_remote = True

    def __init__(self, config: ActorPoolConfig, until_the_end: ExitStack, progress: Progress) -> None:
        self._config, self._until_the_end, self._progress = config, until_the_end, progress
        self._workers: list[ActorHandle] = []

    def features(self, job: ExtractionJob) -> Extracted:
        items = job.items
        workers = self._workers_for(len(items))
        with shared_index(job.index) as shared, self._progress("features", job.index.num_rows) as advance:
            held = ray.put(replace(job, index=shared))

            def portions() -> Iterator[Extracted]:
                for groups, portion in spread(workers, lambda actor, groups: actor.portion.remote([held], groups), items):
                    yield portion
                    advance(int(job.index.group_rows[groups].sum()))

            return joined(job, portions())

    def encode_crops(self, job: CropJob, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        crops = job.crops()
        workers = self._workers_for(len(list(crops.portions(0))))
        every = (portion for epoch in range(job.epochs) for portion in crops.portions(epoch))

        def pieces(of_epoch: Iterator[tuple[CropPortion, Any]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _, (features, labels, bad) in of_epoch:
                if bad:
                    on_bad(bad)
                yield features, labels

        with shared_index(job.index) as shared:
            held = ray.put(replace(job, index=shared))
            found = in_order(workers, lambda actor, portion: actor.crops.remote([held], portion), every)
            for _, of_epoch in groupby(found, lambda pair: pair[0].epoch):
                yield from labeled_batches(pieces(of_epoch), job.batch_size)

    def evaluate(self, job: EvaluationJob) -> list[Evaluation]:
        if not is_one_machine():
            job = job.for_other_machines()
        items, held = range(len(job.tasks)), ray.put(job)
        workers = self._workers_for(len(items))
        found: dict[int, Evaluation] = {}
        with self._progress("data sets", len(items)) as advance:
            for number, evaluation in spread(workers, lambda actor, number: actor.evaluate_task.remote([held], number), items, in_flight=1):
                found[number] = evaluation
                advance(1)
        return [found[number] for number in items]

    def _workers_for(self, num_items: int) -> list[ActorHandle]:
        """The actors. If there is work for more of them, more are started."""
        missing = min(num_wanted(self._config), num_items) - len(self._workers)
        if missing > 0:
            config = self._config.model_copy(update={"num_actors": missing})
            pool = actor_pool(EvaluationWorker, (config.num_cpus, config.num_gpus), config, missing, waits=not self._workers)
            self._workers += self._until_the_end.enter_context(pool)
        return self._workers


@contextmanager
def evaluation_pool(config: ActorPoolConfig, progress: Progress = no_progress) -> Iterator[EvaluationPool]:
    """A pool of actors, which end with the block."""
    with ExitStack() as until_the_end:
        yield EvaluationPool(config, until_the_end, progress)
