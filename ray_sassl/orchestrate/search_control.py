"""One small actor a study, whose process never imports torch: carries the stop request to the trials, and their progress to the terminal."""

from __future__ import annotations

from typing import Any, cast

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.session import beside_the_driver


class StudyControl:
    """The actor's state."""

    def __init__(self) -> None:
        self._stop = False
        self._progress: dict[int, dict[str, float]] = {}

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop

    def report(self, number: int, metrics: dict[str, float]) -> None:
        self._progress[number] = metrics

    def progress(self) -> dict[int, dict[str, float]]:
        """The newest metrics of each trial since the last call."""
        progress, self._progress = self._progress, {}
        return progress


def start_control() -> ActorHandle:
    """The study's control actor; it takes no CPU and ends with the driver."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=beside_the_driver())(StudyControl)
    return remote.remote()
