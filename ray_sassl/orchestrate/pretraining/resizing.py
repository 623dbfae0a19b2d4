"""A checkpoint before the number of an elastic run's workers changes, so that growing loses no work."""

from __future__ import annotations

import time

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.runtime.private import ControllerCallback, ResizingState, TrainControllerState
from ray_sassl.train.checkpoint_folder import whole_checkpoints

_LOOK_EVERY_S = 0.5
_PATIENCE_S = 60.0


class CheckpointBeforeResize(ControllerCallback):
    """Requests a checkpoint from the workers when Ray Train has decided to resize their group, and waits until it is written.

    If none is written in time, the group continues from the previous one, as after a crash.
    """

    def __init__(self, control: ActorHandle, run_dir: str) -> None:
        self._control, self._run_dir = control, run_dir

    def after_controller_state_update(self, previous_state: TrainControllerState, current_state: TrainControllerState) -> None:
        if isinstance(current_state, ResizingState):
            before = self._newest()
            ray.get(self._control.request_checkpoint.remote(True))
            until = time.monotonic() + _PATIENCE_S
            while self._newest() == before and time.monotonic() < until:
                time.sleep(_LOOK_EVERY_S)
            ray.get(self._control.request_checkpoint.remote(False))

    def _newest(self) -> int:
        return max((step for step, _ in whole_checkpoints(self._run_dir)), default=0)
