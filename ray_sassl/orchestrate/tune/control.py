"""One small actor a study, whose process never imports torch: carries the stop request to the trials, their progress to the terminal, and
knows whose folder each trial's is."""

from __future__ import annotations

from typing import Any, cast

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.runtime.session import pin_to_driver


class StudyControl:
    """The actor's state."""

    def __init__(self) -> None:
        self._stop = False
        self._progress: dict[int, dict[str, float]] = {}
        self._owners: dict[int, ActorHandle] = {}

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

    def take(self, number: int, actor: ActorHandle) -> ActorHandle | None:
        """Make the actor the owner of the trial's folder; where another one is, nothing is changed, and it is returned."""
        owner = self._owners.setdefault(number, actor)
        return None if owner == actor else owner

    def leave(self, number: int, actor: ActorHandle) -> None:
        """The actor is the owner no more. Its handle is not kept, since Ray ends an actor when nobody holds one."""
        if self._owners.get(number) == actor:
            del self._owners[number]


def start_control() -> ActorHandle:
    """The study's control actor; it takes no CPU and ends with the driver."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=pin_to_driver())(StudyControl)
    return remote.remote()
