"""Features of whole data sets on a pool of Ray actors. Ray must have been initialised.

Each actor holds the encoder; it is handed portions of row groups, so that what an actor was doing when it died is done again by its successor.
The job travels as a reference that actors resolve once: an argument of their construction could not be had again where a node is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import ray
import torch
from ray.actor import ActorHandle

from ray_sassl.extraction import Extract, Extracted, ExtractionJob, Extractor, joined
from ray_sassl.orchestrate.actor_pool import ActorPoolConfig, actor_pool, spread
from ray_sassl.orchestrate.devices import device_type
from ray_sassl.orchestrate.progress import progress_bar


class FeatureWorker:
    """One actor: the encoder of the job that it works on."""

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self._num_threads = max(1, int(num_cpus))
        self._device = torch.device(device_type(num_gpus))
        self._held: ray.ObjectRef | None = None
        self._extractor: Extractor | None = None
        torch.set_num_threads(self._num_threads)

    def portion(self, held: list[ray.ObjectRef], groups: Sequence[int]) -> Extracted:
        """The features of these row groups; `held` is the job's reference, in a list so that Ray does not fetch it at each call."""
        if self._extractor is None or self._held != held[0]:
            self._extractor, self._held = None, held[0]
            self._extractor = Extractor(cast(ExtractionJob, ray.get(held[0])), self._device, self._num_threads)
        return self._extractor.portion(groups)


@contextmanager
def feature_pool(config: ActorPoolConfig, *, show_progress: bool = True) -> Iterator[Extract]:
    """Within the block, a function that does whole jobs on actors, which are started for the first job and serve all.

    The function raises UsageError where the cluster can never offer the actors.
    """
    workers: list[ActorHandle] = []
    with ExitStack() as until_the_end:

        def extract(job: ExtractionJob) -> Extracted:
            items = job.items
            if not workers:
                workers.extend(
                    until_the_end.enter_context(actor_pool(FeatureWorker, (config.num_cpus, config.num_gpus), config, len(items)))
                )
            held = ray.put(job)
            done = []
            with progress_bar("features", job.index.num_rows, is_shown=show_progress) as advance:
                for groups, portion in spread(workers, lambda actor, groups: actor.portion.remote([held], groups), items):
                    done.append(portion)
                    advance(int(job.index.group_rows[groups].sum()))
            return joined(job, done)

        yield extract
