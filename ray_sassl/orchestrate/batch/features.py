"""Features of whole data sets, and whole judgments by other data sets, on a pool of Ray actors. Ray must have been initialized.

Each actor holds the encoder. Of features it is handed portions of row groups, of crops portions of an epoch's order, of judgments one data set at a
time; what an actor was doing when it died is done again by its successor. A job travels as a reference that actors resolve once: an argument of their construction could not be had again
where a node is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import Evaluation
from ray_sassl.evaluation.crops import CropPortion, labeled_batches
from ray_sassl.evaluation.extraction import CropEncoder, CropJob, Extracted, ExtractionJob, Extractor, encode_crops_on, extract_on, joined
from ray_sassl.evaluation.subject import JudgeJob, judge_one
from ray_sassl.files import storage
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig, actor_pool, in_order, num_wanted, spread
from ray_sassl.orchestrate.runtime.autoscaler import is_one_machine
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.pipeline import OnBad


class EvaluationWorker:
    """One actor: the job that it works on, with its encoder."""

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self._num_threads = max(1, int(num_cpus))
        self._device = torch.device(device_type(num_gpus))
        self._held: ray.ObjectRef | None = None
        self._job: Any = None
        torch.set_num_threads(self._num_threads)

    def portion(self, held: list[ray.ObjectRef], groups: Sequence[int]) -> Extracted:
        """The features of these row groups; `held` is the job's reference, in a list so that Ray does not fetch it at each call."""
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

    def judge(self, held: list[ray.ObjectRef], number: int) -> Evaluation:
        """What the job's task of this number finds."""
        if self._held != held[0]:
            self._job, self._held = ray.get(held[0]), held[0]
        place = self._device, self._num_threads
        return judge_one(self._job, number, partial(extract_on, *place), partial(encode_crops_on, *place))


class EvaluationPool:
    """Actors that serve all jobs of an evaluation; they are started when there is work for them."""

    def __init__(self, config: ActorPoolConfig, until_the_end: ExitStack, show_progress: bool) -> None:
        self._config, self._until_the_end, self._show_progress = config, until_the_end, show_progress
        self._workers: list[ActorHandle] = []

    def extract(self, job: ExtractionJob) -> Extracted:
        """All features of the job.

        Raises:
            UsageError: the cluster can never offer the actors.
        """
        items, held, done = job.items, ray.put(job), []
        workers = self._workers_for(len(items))
        with progress_bar("features", job.index.num_rows, is_shown=self._show_progress) as advance:
            for groups, portion in spread(workers, lambda actor, groups: actor.portion.remote([held], groups), items):
                done.append(portion)
                advance(int(job.index.group_rows[groups].sum()))
        return joined(job, done)

    def encode_crops(self, job: CropJob, on_bad: OnBad) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and labels of the job's crops in batches, in the order in which one process has them.

        Raises:
            UsageError: the cluster can never offer the actors.
        """
        held, crops = ray.put(job), job.crops()
        workers = self._workers_for(len(list(crops.portions(0))))
        every = (portion for epoch in range(job.epochs) for portion in crops.portions(epoch))
        found = in_order(workers, lambda actor, portion: actor.crops.remote([held], portion), every)

        def pieces(of_epoch: Iterator[tuple[CropPortion, Any]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _, (features, labels, bad) in of_epoch:
                if bad:
                    on_bad(bad)
                yield features, labels

        for _, of_epoch in groupby(found, lambda pair: pair[0].epoch):
            yield from labeled_batches(pieces(of_epoch), job.batch_size)

    def judge(self, job: JudgeJob) -> list[Evaluation]:
        """What the job's tasks find, each on one actor, begun in their order.

        Raises:
            UsageError: the cluster can never offer the actors, or a task ends with one.
        """
        if job.folder is not None and not storage.is_uri(job.folder) and not is_one_machine():
            job = replace(job, folder=None)  # other nodes would keep features on disks of their own
        items, held = range(len(job.tasks)), ray.put(job)
        workers = self._workers_for(len(items))
        found: dict[int, Evaluation] = {}
        with progress_bar("data sets", len(items), is_shown=self._show_progress) as advance:
            for number, evaluation in spread(workers, lambda actor, number: actor.judge.remote([held], number), items, in_flight=1):
                found[number] = evaluation
                advance(1)
        return [found[number] for number in items]

    def _workers_for(self, num_items: int) -> list[ActorHandle]:
        """The actors, with more of them where there is work for more than were started."""
        missing = min(num_wanted(self._config), num_items) - len(self._workers)
        if missing > 0:
            config = self._config.model_copy(update={"num_actors": missing})
            pool = actor_pool(EvaluationWorker, (config.num_cpus, config.num_gpus), config, missing, waits=not self._workers)
            self._workers += self._until_the_end.enter_context(pool)
        return self._workers


@contextmanager
def evaluation_pool(config: ActorPoolConfig, *, show_progress: bool = True) -> Iterator[EvaluationPool]:
    """A pool whose actors are ended after the block."""
    with ExitStack() as until_the_end:
        yield EvaluationPool(config, until_the_end, show_progress)
