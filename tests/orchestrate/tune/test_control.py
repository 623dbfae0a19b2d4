"""No two actors have a run in one folder."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from ray_sassl.config.files import to_yaml
from ray_sassl.orchestrate.tune.control import start_control
from ray_sassl.orchestrate.tune.trial import PretrainTrial, TrialSpec
from ray_sassl.study.record import trial_dir
from ray_sassl.train.loop import EVALUATION
from tests.orchestrate.simulated import NUM_EVALUATIONS, SimulatedRun, simulated_study

pytestmark = pytest.mark.ray


def _actor(study_dir: Path, control: Any, seconds: float) -> Any:
    spec = TrialSpec(to_yaml(simulated_study(scheduler="pbt")), str(study_dir), 5120, control, SimulatedRun(seconds))

    class Trial(PretrainTrial):
        def __init__(self) -> None:
            self.setup({"number": 0, "point": {"sassl.prob": 0.7}}, spec)

        def pid(self) -> int:
            return os.getpid()

    return cast(Any, ray.remote)(num_cpus=0)(Trial).remote()


def _step(actor: Any) -> dict[str, Any]:
    return cast(dict[str, Any], ray.get(actor.step.remote()))


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_actor_that_goes_on_with_a_trial_waits_until_the_one_before_has_ended_its_run(
    ray_cluster: None, tmp_path: Path, is_killed: bool
):
    control = start_control()
    first, second = (_actor(tmp_path, control, seconds) for seconds in (0.5, 0.01))
    assert _step(first)[EVALUATION] == 1
    if is_killed:
        os.kill(ray.get(first.pid.remote()), signal.SIGKILL)
    while not _step(second).get("done"):
        pass
    log = Path(trial_dir(str(tmp_path), 0)) / "log.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[-1] == NUM_EVALUATIONS
    assert len(steps) <= NUM_EVALUATIONS + is_killed, "what came after the last checkpoint is done again"
    if not is_killed:
        time.sleep(1)  # it would train on
        assert len(log.read_text().splitlines()) == NUM_EVALUATIONS
        ray.get(first.cleanup.remote())
    ray.get(second.cleanup.remote())
    assert ray.get(control.take.remote(0, first)) is None, "the folder is free"
