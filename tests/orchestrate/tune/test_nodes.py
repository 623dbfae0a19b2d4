"""A study of real runs on a cluster of several nodes, of which one is lost, and whose driver is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.nodes import Nodes, running_nodes
from benchmarks.processes import descendants, kill_all
from ray_sassl.config.files import from_yaml
from ray_sassl.study.record import TrialRecord, read_trials

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

NUM_TRIALS, NUM_EVALUATIONS = 5, 30
PATIENCE_S = 400.0
PROGRAM = f"""
import sys
from pathlib import Path

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.tune.search import search
from ray_sassl.study.record import read_study
from tests.orchestrate.conftest import small_study

if __name__ == "__main__":
    folder, address = Path(sys.argv[1]), sys.argv[2]
    resume = (folder / "study" / "study.yaml").exists()
    new = dict(epochs={NUM_EVALUATIONS}, num_trials={NUM_TRIALS}, max_concurrent=2)
    study = read_study(str(folder / "study")) if resume else small_study(folder, **new)
    base = apply_overrides(study.base, ["scaling.cpus_per_worker=1.5"])  # of a node's two CPUs, so that each node has one trial
    search(study.model_copy(update={{"base": base}}), str(folder / "study"), address=address, resume=resume)
"""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with running_nodes(2) as nodes:
        yield nodes


def _trials(folder: Path) -> list[TrialRecord]:
    with contextlib.suppress(FileNotFoundError):
        return read_trials(str(folder / "study"))
    return []


def _begin(folder: Path, nodes: Nodes) -> subprocess.Popen[bytes]:
    with (folder / "driver.log").open("ab") as log:
        command = [sys.executable, "-c", PROGRAM, str(folder), nodes.address]
        return subprocess.Popen(command, env=nodes.environment, stdout=log, stderr=subprocess.STDOUT)


def test_neither_a_lost_node_nor_a_killed_driver_loses_a_trial(nodes: Nodes, tmp_path: Path):
    driver = _begin(tmp_path, nodes)

    def wait_until(is_so: Callable[[list[TrialRecord]], bool], what: str) -> list[TrialRecord]:
        until = time.monotonic() + PATIENCE_S
        while not is_so(trials := _trials(tmp_path)):
            log = (tmp_path / "driver.log").read_text()[-3000:]
            assert driver.poll() is None, f"the search ended before {what}: {log}"
            assert time.monotonic() < until, (
                f"{what} did not come: {[(t.number, t.state, len(t.curve), t.attempts) for t in trials]}; {log}"
            )
            time.sleep(0.2)
        return trials

    try:
        wait_until(lambda trials: sum(t.state == "running" and len(t.curve) >= 3 for t in trials) == 2, "two trials at once")
        nodes.kill(next(node for node in nodes.workers if "ResourceTrainable" in " ".join(descendants(node.pid).values())))
        nodes.add()
        wait_until(lambda trials: any(t.attempts == 2 for t in trials), "the second attempt of the trial whose node was lost")
        wait_until(
            lambda trials: any(t.state == "finished" for t in trials) and any(t.state == "running" and len(t.curve) >= 3 for t in trials),
            "a finished and a running trial",
        )
        kill_all(driver.pid)
        driver.wait()
        before = {trial.number: trial for trial in _trials(tmp_path)}
        time.sleep(5)  # the cluster ends what the driver had started
        driver = _begin(tmp_path, nodes)
        assert driver.wait(timeout=PATIENCE_S) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        kill_all(driver.pid)
    after = {trial.number: trial for trial in _trials(tmp_path)}
    assert [trial.state for trial in after.values()] == ["finished"] * NUM_TRIALS
    for trial in after.values():
        assert [evaluation.number for evaluation in trial.curve] == list(range(1, NUM_EVALUATIONS + 1))
    for number, trial in before.items():
        assert after[number].point == trial.point
        assert trial.state != "finished" or after[number] == trial
    assert from_yaml((tmp_path / "study" / "best.yaml").read_text()).name == "small_best"
