"""Ray Train as every job here uses it: a trainer that is watched while it runs, and the group of workers of the smaller jobs."""

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
from ray_sassl.orchestrate.runtime.watched import run_watched
from ray_sassl.plugins import UsageError

LOOK_EVERY_S = 0.25
_MAX_FAILURES = 3

Watch = Callable[[ProgressUpdate], None]
"""Is shown a job's update several times a second, in the driver's process."""


class RunFailedError(UsageError):
    """The job ended by an error that only the user can mend."""


def fit(trainer: TorchTrainer, control: ActorHandle, watch: Watch, needs: Sequence[Need], stop: threading.Event | None = None) -> None:
    """Run the trainer and show its progress meanwhile.

    Args:
        control: The job's control actor; an error that it knows of is left to the caller, who finds it there.
        needs: What the job holds at once.
        stop: Once set, the workers are asked to stop.

    Raises:
        ResourcesError: what it needs will never be there.
        RunFailedError: the workers ended by an error, and not because the job was told to end.
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
        raise RunFailedError(f"the training workers failed: {reason_of(error)}") from error


@dataclass(frozen=True)
class Workers:
    """The workers of a job whose number does not change.

    Attributes:
        count: Among which each step's batch is shared.
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
    ) -> None:
        """Run `function(spec)` in each worker until all have ended; where one is lost, all are started again.

        Args:
            name: Of the job, for Ray's dashboard.
            folder: That every worker reaches, for what Ray Train writes down on a cluster of several nodes.

        Raises:
            ResourcesError: there will never be room for the workers.
            UsageError: what a worker has handed to the control actor as the reason why the job cannot be done.
            RunFailedError: what ended the workers otherwise.
        """
        announce = Announcer(say)

        def show(update: ProgressUpdate) -> None:
            announce(update.waiting)
            watch(update)

        with tempfile.TemporaryDirectory(prefix="ray-sassl-") as ray_storage:
            trainer = TorchTrainer(
                function,
                train_loop_config=spec,
                scaling_config=ScalingConfig(num_workers=self.count, use_gpu=self.use_gpu, resources_per_worker=dict(self._need.each)),
                run_config=RunConfig(
                    name=name,
                    storage_path=ray_storage if is_one_machine() else storage.join(folder, ".ray"),
                    failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                ),
            )
            fit(trainer, control, show, [self._need])
        if fatal := cast("str | None", ray.get(control.fatal.remote())):
            raise UsageError(fatal)
