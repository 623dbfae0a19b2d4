"""Ray Train as all our jobs use it: a trainer with progress while it runs, and the group of workers of the smaller jobs."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.runtime.autoscaler import Announcer, Waiting, say
from ray_sassl.orchestrate.runtime.capacity import Need, check_fits, is_one_machine, offered
from ray_sassl.orchestrate.runtime.reasons import reason_of
from ray_sassl.orchestrate.runtime.rendezvous import torch_config
from ray_sassl.orchestrate.runtime.watched import run_watched
from ray_sassl.process.errors import UsageError

LOOK_EVERY_S = 0.25
_MAX_FAILURES = 3

Watch = Callable[[ProgressUpdate], None]
"""Called with a job's update several times a second, in the driver's process."""


class RunFailedError(UsageError):
    """The job failed with an error that only the user can fix."""


class WorkersFailedError(RunFailedError):
    """The workers ended more often than is allowed, with an error that a restart may not meet again."""


def fit(trainer: TorchTrainer, control: ActorHandle, watch: Watch, needs: Sequence[Need], stop: threading.Event | None = None) -> None:
    """Run the trainer and show its progress.

    Args:
        control: The job's control actor; an error that it knows is left to the caller.
        needs: What the job holds at once.
        stop: When it is set, the workers are asked to stop.

    Raises:
        ResourcesError: the cluster will never have what the job needs.
        WorkersFailedError: the workers ended with an error that the control actor does not know.
    """
    has_begun, waiting = False, Waiting(needs)

    def look(is_running: bool) -> None:
        nonlocal has_begun
        if stop is not None and stop.is_set():
            control.request_stop.remote()
        update = cast(ProgressUpdate, ray.get(control.progress.remote()))
        has_begun = has_begun or bool(update.reports)
        update.waiting = waiting.look(has_begun=has_begun) if is_running else ""
        watch(update)

    error = run_watched(trainer.fit, look, every_s=LOOK_EVERY_S)
    if error is not None and ray.get(control.fatal.remote()) is None:
        raise WorkersFailedError(f"the training workers failed: {reason_of(error)}") from error


@dataclass(frozen=True)
class Workers:
    """A fixed number of workers of a job.

    Attributes:
        count: Number of workers, among which each step's batch is divided.
        num_cpus: CPUs of one worker, and its threads.
        use_gpu: Whether each has a GPU.
    """

    count: int = 1
    num_cpus: float = 1.0
    use_gpu: bool = False

    @property
    def num_threads(self) -> int:
        return max(1, int(self.num_cpus))

    @property
    def _need(self) -> Need:
        each = {"CPU": self.num_cpus} | ({"GPU": 1.0} if self.use_gpu else {})
        return Need(f"{self.count} workers", self.count, each)

    def check(self) -> None:
        """Raise a ResourcesError if the cluster can never hold the workers."""
        check_fits([self._need], offered, "the job")

    def run(
        self,
        function: Callable[[dict[str, Any]], None],
        spec: dict[str, Any],
        *,
        name: str,
        folder: str,
        control: ActorHandle,
        watch: Watch,
        stop: threading.Event | None = None,
    ) -> None:
        """Run `function(spec)` in each worker until all have ended; if one is lost, all are restarted.

        Args:
            name: The job's name, for Ray's dashboard.
            folder: A folder that every worker reaches, for Ray Train's files on a cluster of several nodes.
            stop: When it is set, the workers are asked to stop.

        Raises:
            ResourcesError: there will never be room for the workers.
            UsageError: a worker has reported to the control actor why the job cannot be done.
            RunFailedError: the workers ended with another error.
        """
        announce = Announcer(say)

        def show(update: ProgressUpdate) -> None:
            announce(update.waiting)
            watch(update)

        with tempfile.TemporaryDirectory(prefix="ray-sassl-") as ray_storage:
            trainer = TorchTrainer(
                function,
                train_loop_config=spec,
                torch_config=torch_config(),
                scaling_config=ScalingConfig(num_workers=self.count, use_gpu=self.use_gpu, resources_per_worker=dict(self._need.each)),
                run_config=RunConfig(
                    name=name,
                    storage_path=ray_storage if is_one_machine() else storage.join(folder, ".ray"),
                    failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                ),
            )
            fit(trainer, control, show, [self._need], stop)
        if fatal := cast("str | None", ray.get(control.fatal.remote())):
            raise UsageError(fatal)
