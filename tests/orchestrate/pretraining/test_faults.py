"""Processes of a run are killed, and the run ends as if nothing had been; docs/faults.md says what is promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.processes import DECODE_TASK, STYLIZER, TRAIN_WORKER, kill_all, kill_one
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, start_control
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.pipeline import local_batches
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import build_stylize_block, view_source
from ray_sassl.runs.teacher import build_teacher
from ray_sassl.train.checkpoint import latest_checkpoint
from tests.orchestrate.conftest import NUM_ROWS, kept_teacher, small_config, write_shards
from tests.orchestrate.forked.workers import fork_server

pytestmark = pytest.mark.ray

EVERY = 7
PATIENCE_S = 420
"""Starting Ray and its workers takes half a minute on a quiet machine, and minutes on a busy one."""


def assert_same_end(run_dir: str, other: str) -> None:
    """Weights, optimizer and seen samples are equal to the bit."""
    mine, theirs = latest_checkpoint(run_dir), latest_checkpoint(other)
    assert mine is not None
    assert theirs is not None
    assert mine.step == theirs.step
    assert mine.seen.encode() == theirs.seen.encode()
    for name, tensor in {**theirs.backbone, **theirs.state["method"]}.items():
        assert torch.equal({**mine.backbone, **mine.state["method"]}[name], tensor), name


def long_run(path: str, *overrides: str, num_workers: int = 1) -> ExperimentConfig:
    """Of enough steps that there is time to kill something; a checkpoint every `EVERY`."""
    config = small_config(path, epochs=12, num_workers=num_workers)
    return apply_overrides(
        config, ["train.log_every=1", f"train.checkpoint_every={EVERY}", "evaluate.train=null", "evaluate.test=null", *overrides]
    )


class KillAt:
    """Kills a process once steps are reported, and keeps the reported steps."""

    def __init__(self, *steps: int, what: str = TRAIN_WORKER) -> None:
        self.todo, self.what = list(steps), what
        self.reported: list[int] = []

    def __call__(self, update: ProgressUpdate) -> None:
        self.reported += [int(report["step"]) for report in update.reports if "loss" in report]
        if self.todo and self.reported and self.reported[-1] >= self.todo[0]:
            self.todo.pop(0)
            kill_one(self.what)

    @property
    def lost(self) -> list[int]:
        """How many reported steps were done again after each kill."""
        return [before - after + 1 for before, after in zip(self.reported, self.reported[1:], strict=False) if after <= before]


def test_a_killed_train_worker_changes_nothing_of_the_end_and_costs_at_most_two_checkpoint_intervals(ray_cluster: None, tmp_path: Path):
    path = write_shards(tmp_path, bad=(3,))
    config = long_run(
        path, "stylize=color_statistics", "scaling.max_failures=2"
    )  # in a row: Ray may end a new worker with the last's tasks
    watch = KillAt(2 * EVERY + 3, 5 * EVERY + 3)  # not just after a checkpoint, where nothing would be lost
    result = pretrain(config, str(tmp_path / "killed"), watch=watch)
    assert result.status == "finished"
    assert not watch.todo
    assert len(watch.lost) >= 1
    assert all(0 < lost <= 2 * EVERY for lost in watch.lost), watch.lost
    pretrain(long_run(path, "stylize=color_statistics", num_workers=0), str(tmp_path / "here"))
    assert_same_end(str(tmp_path / "killed"), str(tmp_path / "here"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, result.step + 1))


def test_a_killed_actor_that_stylizes_and_teaches_and_a_killed_decode_task_lose_and_repeat_no_row(ray_cluster: None, tmp_path: Path):
    overrides = ["stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5", "stream.num_cpus=0.5"]
    config = apply_overrides(small_config(write_shards(tmp_path, bad=(7, 90)), epochs=15), overrides)
    run_dir = str(tmp_path / "run")
    config = kept_teacher(config, run_dir, tmp_path)
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(stream_spec(config, view_source(config, run_dir)), SeenIds(NUM_ROWS), control)
    expected = local_batches(
        view_source(config, run_dir),
        epochs=15,
        batch_size=16,
        on_bad=lambda rows: None,
        stylize_block=build_stylize_block(config, "cpu", 1),
        teach=build_teacher(config, run_dir, "cpu", 1),
    )
    num_batches = 0
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one, DECODE_TASK)  # the first one: later ones may all have run ahead
        for number, batch in enumerate(stream.iter_batches(batch_size=16, drop_last=True)):
            if number in (20, 80):
                kill_one(STYLIZER)
            for name, array in next(expected).items():
                np.testing.assert_array_equal(np.asarray(batch[name]), array, err_msg=f"{name} of batch {number}")
            num_batches += 1
        assert killed.result()
    assert num_batches == 15 * (NUM_ROWS - 2) // 16


@contextmanager
def begun(config: ExperimentConfig, run_dir: str, folder: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process of its own, of which nothing is left afterward."""
    (folder / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "ray_sassl.cli", "pretrain", str(folder / "run.yaml"), "--run-dir", run_dir, *flags]
    with fork_server() as (server, forking), (folder / "run.log").open("ab") as log:
        path = os.pathsep.join([forking["PYTHONPATH"], str(Path(__file__).parents[3])])
        environment = os.environ | forking | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            yield process
        finally:
            kill_all(process.pid, server)
            process.wait()


def step_of(run_dir: Path) -> int:
    """The last step in the run's metrics, 0 where there is none yet."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for_step(process: subprocess.Popen[bytes], run_dir: Path, step: int, folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Until the run has logged the step."""
    until = time.monotonic() + patience_s
    while step_of(run_dir) < step:
        assert process.poll() is None, (folder / "run.log").read_text()[-3000:]
        assert time.monotonic() < until, f"step {step} did not come: {(folder / 'run.log').read_text()[-3000:]}"
        time.sleep(0.05)


def test_a_killed_command_goes_on_from_its_last_checkpoint(tmp_path: Path):
    path, run_dir = write_shards(tmp_path), tmp_path / "run"
    config = long_run(path)
    with begun(config, str(run_dir), tmp_path) as first:
        wait_for_step(first, run_dir, 2 * EVERY + 3, tmp_path)
    reached = latest_checkpoint(str(run_dir))
    assert reached is not None
    assert reached.step >= EVERY
    with begun(config, str(run_dir), tmp_path, "--resume") as second:
        assert second.wait(timeout=PATIENCE_S) == 0, (tmp_path / "run.log").read_text()[-3000:]
    pretrain(long_run(path, num_workers=0), str(tmp_path / "here"))
    assert_same_end(str(run_dir), str(tmp_path / "here"))
