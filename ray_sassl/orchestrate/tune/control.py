"""One small actor per study, whose process never imports torch. It carries the stop request to the trials and their progress to the
terminal, and records which actor owns each trial's folder."""

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
        """Make the actor the owner of the trial's folder. If another actor is the owner, return that one and change nothing."""
        owner = self._owners.setdefault(number, actor)
        return None if owner == actor else owner

    def leave(self, number: int, actor: ActorHandle) -> None:
        """End the actor's ownership. Its handle is dropped, since Ray ends an actor only when nobody holds a handle."""
        if self._owners.get(number) == actor:
            del self._owners[number]


def start_control() -> ActorHandle:
    """The study's control actor; it takes no CPU and ends with the driver."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=pin_to_driver())(StudyControl)
    return remote.remote()
