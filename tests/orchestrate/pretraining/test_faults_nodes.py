"""Whole nodes are lost, announced to go away, and come back; commands are killed whose run is in an object store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.nodes import Node, Nodes, running_nodes
from benchmarks.processes import STYLIZER, TRAIN_WORKER, doing, kill_all
from ray_sassl.config.files import to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints
from tests.flaky_store import flaky_store
from tests.orchestrate.conftest import NUM_ROWS, write_shards
from tests.orchestrate.pretraining.test_faults import EVERY, PATIENCE_S, KillAt, assert_same_end, begun, long_run

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

ONE_A_NODE = "scaling.cpus_per_worker=1.5"
"""Of a node's two CPUs, so that each node has one worker, and half a CPU is left for the stream."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with running_nodes(2) as nodes:
        yield nodes
    for command in Command.all_of_them:
        if command.process.poll() is None:
            kill_all(command.process.pid)


class Command:
    """`ray-sassl pretrain` on the cluster, in a process of its own, which ends with the cluster at the latest."""

    all_of_them: ClassVar[list[Command]] = []

    def __init__(self, config: ExperimentConfig, run_dir: Path, nodes: Nodes) -> None:
        self.run_dir, self._log = run_dir, run_dir.with_suffix(".log")
        path = run_dir.with_suffix(".yaml")
        path.write_text(to_yaml(config))
        command = [sys.executable, "-m", "ray_sassl.cli", "pretrain", str(path), "--run-dir", str(run_dir), "--address", nodes.address]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=nodes.environment, stdout=log, stderr=subprocess.STDOUT)
        self.all_of_them.append(self)

    def last(self) -> dict[str, float]:
        """The last logged metrics; step 0 where there are none."""
        metrics = self.run_dir / "metrics.jsonl"
        lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")] if metrics.exists() else []
        return json.loads(lines[-1]) if lines else {"step": 0, "num_workers": 0}

    def wait_until(self, is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        until = time.monotonic() + patience_s
        while not is_so():
            assert self.process.poll() is None, f"the run ended before {what}: {self._log.read_text()[-3000:]}"
            assert time.monotonic() < until, f"{what} did not come; {self.last()}; {self._log.read_text()[-3000:]}"
            time.sleep(0.1)

    def wait_for_step(self, step: float) -> None:
        self.wait_until(lambda: self.last()["step"] >= step, f"step {step}")

    def stop(self) -> None:
        """As by Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=PATIENCE_S) == 130, self._log.read_text()[-3000:]

    def finish(self) -> None:
        assert self.process.wait(timeout=PATIENCE_S) == 0, self._log.read_text()[-3000:]


def _with_the_worker(nodes: Nodes) -> Node:
    return next(node for node in nodes.workers if doing(TRAIN_WORKER, node.pid))


def test_a_lost_node_without_replacement_leaves_fewer_workers_and_one_that_returns_is_used_again(nodes: Nodes, tmp_path: Path):
    config = long_run(
        write_shards(tmp_path),
        "train.epochs=1000",
        ONE_A_NODE,
        "stream.num_cpus=0.5",
        "scaling.min_workers=1",
        "scaling.resize_every_s=5",
        num_workers=2,
    )
    run = Command(config, tmp_path / "run", nodes)
    run.wait_until(lambda: run.last()["step"] >= 2 * EVERY + 3 and run.last()["num_workers"] == 2, "two workers")
    nodes.kill(nodes.workers[-1])
    run.wait_until(lambda: run.last()["num_workers"] == 1, "one worker")
    run.wait_for_step(run.last()["step"] + 2 * EVERY)
    nodes.add()
    run.wait_until(lambda: run.last()["num_workers"] == 2, "two workers again")
    run.wait_for_step(run.last()["step"] + 3)
    run.stop()
    _assert_each_sample_once(tmp_path / "run")


def _assert_each_sample_once(run_dir: Path) -> None:
    """Every step has trained on a whole batch of rows that no other step has had."""
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    seen = checkpoint.seen
    counts = [seen.count(epoch) for epoch in range(checkpoint.step * 16 // NUM_ROWS + 3)]
    assert sum(counts) == checkpoint.step * 16
    assert counts[: checkpoint.step * 16 // NUM_ROWS - 1] == [NUM_ROWS] * (checkpoint.step * 16 // NUM_ROWS - 1)


def test_a_notice_that_a_node_will_go_gives_a_checkpoint_at_once_and_is_no_failure(nodes: Nodes, tmp_path: Path):
    config = long_run(
        write_shards(tmp_path),
        "train.epochs=1000",
        "train.checkpoint_every=100000",
        ONE_A_NODE,
        "stream.num_cpus=0.5",
        "scaling.max_failures=0",
    )
    run = Command(config, tmp_path / "run", nodes)
    run.wait_for_step(10)
    node = _with_the_worker(nodes)
    nodes.announce_end(node, seconds=20)
    announced = time.monotonic()
    run.wait_until(lambda: bool(list_checkpoints(str(tmp_path / "run"))), "the checkpoint", patience_s=20)
    print(f"checkpoint {time.monotonic() - announced:.1f} s after the notice")
    (saved, _) = list_checkpoints(str(tmp_path / "run"))[-1]
    time.sleep(max(0.0, announced + 20 - time.monotonic()))
    nodes.kill(node)
    run.wait_until(lambda: bool(doing(TRAIN_WORKER, *[other.pid for other in nodes.workers])), "a worker on another node")
    run.wait_until(lambda: run.last()["step"] in range(saved + 1, saved + 40), "the steps after the checkpoint")
    run.wait_for_step(saved + 60)
    run.stop()
    _assert_each_sample_once(tmp_path / "run")


def test_a_lost_node_of_stylizers_and_decoders_changes_nothing_of_the_end(nodes: Nodes, tmp_path: Path):
    path = write_shards(tmp_path, bad=(3,))
    layout = ["stylize=color_statistics", "stream.layout=pool", "stream.num_cpus=0.5"]
    pool = ["stream.pool={min: 2, max: 2, num_cpus: 0.25}", "scaling.cpus_per_worker=1"]  # one node has room for all of it
    run = Command(long_run(path, "train.epochs=40", *layout, *pool), tmp_path / "run", nodes)
    run.wait_for_step(2 * EVERY + 3)
    others = [node for node in nodes.workers if node is not _with_the_worker(nodes)]
    print(f"stylizers there: {[len(doing(STYLIZER, node.pid)) for node in others]}")
    nodes.kill(others[0])
    run.finish()
    pretrain(long_run(path, "train.epochs=40", *layout, num_workers=0), str(tmp_path / "here"))
    assert_same_end(str(tmp_path / "run"), str(tmp_path / "here"))


def test_the_parts_of_a_window_are_read_again_where_the_node_of_the_exchange_is_lost(nodes: Nodes, tmp_path: Path):
    node = nodes.workers[-1]
    script = Path(__file__).with_name("lost_exchange.py")
    command = [sys.executable, str(script), write_shards(tmp_path), str(tmp_path), nodes.address, node.node_id]
    with subprocess.Popen(command, env=nodes.environment) as reader:
        until = time.monotonic() + PATIENCE_S
        while not (tmp_path / "first part").exists():
            assert reader.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        nodes.kill(node)
        (tmp_path / "lost").touch()
        assert reader.wait(timeout=PATIENCE_S) == 0
    assert (tmp_path / "all parts").exists()


def test_a_killed_command_goes_on_from_an_object_store(tmp_path: Path):
    path = write_shards(tmp_path)
    config = long_run(path)
    with flaky_store() as store:
        run_dir = storage.join(f"s3://bucket{store.options()}", "run")
        with begun(config, run_dir, tmp_path) as first:
            until = time.monotonic() + PATIENCE_S
            while len(list_checkpoints(run_dir)) < 2 and time.monotonic() < until:
                assert first.poll() is None, (tmp_path / "run.log").read_text()[-3000:]
                time.sleep(0.2)
        reached = latest_checkpoint(run_dir)
        assert reached is not None
        assert EVERY <= reached.step < 12 * NUM_ROWS // 16
        with begun(config, run_dir, tmp_path, "--resume") as second:
            assert second.wait(timeout=PATIENCE_S) == 0, (tmp_path / "run.log").read_text()[-3000:]
        pretrain(long_run(path, num_workers=0), str(tmp_path / "here"))
        assert_same_end(run_dir, str(tmp_path / "here"))


def test_two_workers_of_which_one_is_killed_end_as_two_that_were_left_alone(ray_cluster: None, tmp_path: Path):
    config = long_run(write_shards(tmp_path), "data.shuffle_window=40", "data.block_rows=20", num_workers=2)
    watch = KillAt(2 * EVERY + 3)
    pretrain(config, str(tmp_path / "killed"), watch=watch)
    assert not watch.todo
    pretrain(config, str(tmp_path / "alone"))
    assert_same_end(str(tmp_path / "killed"), str(tmp_path / "alone"))


@pytest.mark.parametrize("step", [1, EVERY, EVERY + 1])
def test_a_train_worker_may_be_killed_at_any_step(ray_cluster: None, tmp_path: Path, step: int):
    path = write_shards(tmp_path)
    watch = KillAt(step)
    pretrain(long_run(path), str(tmp_path / "killed"), watch=watch)
    assert not watch.todo
    pretrain(long_run(path, num_workers=0), str(tmp_path / "here"))
    assert_same_end(str(tmp_path / "killed"), str(tmp_path / "here"))
