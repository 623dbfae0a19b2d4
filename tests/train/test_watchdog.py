"""What stands still is named, and a calm run gives no alarm."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from ray_sassl.process.stages import Standing
from ray_sassl.train import loop
from ray_sassl.train.context import LocalContext
from ray_sassl.train.watchdog import Beat, Watchdog
from tests.train.test_loop import SGD, Linear, _batches


class Run:
    """Ranks that beat every second of a clock that is turned by hand."""

    def __init__(self, num_ranks: int = 2, usual_s: float = 0.5) -> None:
        self.now, self.num_ranks, self.usual_s = 0.0, num_ranks, usual_s
        self.dog = Watchdog(60.0, clock=lambda: self.now)
        self.since: dict[int, tuple[tuple[int, str], float]] = {}

    def lasts(self, seconds: int, *ranks: tuple[int, str] | None, standing: Standing | None = None, store_use: float = 0.0) -> list[str]:
        """The alarms in so many seconds, in which each rank is at (step, stage), or silent."""
        alarms = []
        for _ in range(seconds):
            self.now += 1
            for rank, at in enumerate(ranks):
                if at is not None:
                    if self.since.get(rank, (None, 0))[0] != at:
                        self.since[rank] = at, self.now
                    self.dog.note(Beat(rank, *at, self.now - self.since[rank][1], self.usual_s, f"  line of rank {rank}\n", f"node {rank}"))
            if standing is not None:
                self.dog.note_stream(standing)
            if alarm := self.dog.alarm(lambda: store_use):
                alarms.append(alarm)
        return alarms

    def begins(self) -> None:
        assert self.lasts(2, (0, "wait"), (0, "wait")) == []
        assert self.lasts(2, (1, "step"), (1, "step")) == []


@pytest.fixture
def run() -> Run:
    run = Run()
    run.begins()
    return run


def test_a_calm_run_gives_no_alarm_also_before_its_first_step_and_through_scores_and_checkpoints():
    run = Run()
    assert run.lasts(500, (0, "wait"), (0, "wait")) == []  # the stream's tasks wait for nodes
    for step in range(1, 5):
        assert run.lasts(40, (step, "step"), (step, "step")) == []
    assert run.lasts(500, (5, "score"), (5, "step")) == []
    assert run.lasts(300, (6, "checkpoint"), (6, "checkpoint")) == []
    run.usual_s = 30.0
    assert run.lasts(590, (7, "step"), (7, "step")) == []  # 20 usual steps have not passed


def test_a_rank_that_does_not_answer_is_named_with_its_last_stack_and_once(run):
    (alarm,) = run.lasts(200, (1, "step"), None)
    assert "No step for 61 s after step 1. Worker 1 (node 1) has not answered for 6" in alarm
    assert "its process is stopped, or its machine hangs" in alarm
    assert "line of rank 1" in alarm
    assert run.lasts(2, (2, "step"), (2, "step")) == []
    assert len(run.lasts(100, (2, "step"), None)) == 1


@pytest.mark.parametrize("stage", ["transfer", "checkpoint", "score"])
def test_a_rank_that_others_wait_for_is_named_with_its_stage(run, stage):
    (alarm,) = run.lasts(700, (1, "step"), (1, stage))
    assert f"Worker 1 (node 1) stands still in {stage}\n  line of rank 1" in alarm


def test_a_rank_that_is_a_step_behind_is_named(run):
    (alarm,) = run.lasts(100, (2, "step"), (1, "step"))
    assert "Worker 1 (node 1) stands still in step" in alarm


def test_where_all_are_within_the_same_step_the_network_or_a_device_hangs(run):
    (alarm,) = run.lasts(100, (1, "step"), (1, "step"))
    assert "All workers are within step 2: a device or the network between them hangs" in alarm


def test_the_process_of_the_stream_that_stands_still_is_named(run):
    standing = Standing("decode", 70.0, "  in the decoder\n", "Process 7 of the stream on node 3")
    (alarm,) = run.lasts(100, (1, "wait"), (1, "step"), standing=standing)
    assert (
        "Worker 0 (node 0) waits for the stream. Process 7 of the stream on node 3 stands still in decode, for 70 s\n  in the dec" in alarm
    )


def test_a_full_object_store_is_named(run):
    (alarm,) = run.lasts(100, (1, "wait"), (1, "step"), store_use=0.97)
    assert "The object store is 97% full" in alarm


def test_without_any_process_at_work_the_stream_waits_for_resources(run):
    (alarm,) = run.lasts(100, (1, "wait"), (1, "wait"))
    assert "tasks or stylizers wait for CPUs or GPUs" in alarm


def test_a_rank_that_has_done_its_part_and_workers_that_start_anew_are_not_missed(run):
    run.dog.leave(1)
    assert run.lasts(500, (1, "score")) == []
    run.dog.forget()
    assert run.lasts(500) == []


def test_the_loop_tells_where_it_stands_still(tmp_path, monkeypatch, caplog):
    is_told = threading.Event()
    update, count = loop._update, 0

    def hangs(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            is_told.wait(timeout=30)
        return update(*args)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "No step for" in record.getMessage():
                is_told.set()

    monkeypatch.setattr(loop, "_update", hangs)
    monkeypatch.setattr(logging.getLogger("ray_sassl.train.context"), "handlers", [Handler()])
    settings = loop.TrainConfig(epochs=1, global_batch=4, log_every=1)
    began = time.monotonic()
    job = loop.Job(Linear(), _batches(16, 4), settings, SGD, 16, 0, str(tmp_path), "", LocalContext(stall_s=0.3), stall_s=0.3)
    assert loop.train(job).step == 4
    assert is_told.is_set()
    assert time.monotonic() - began < 30
    (record,) = [record for record in caplog.records if "No step for" in record.getMessage()]
    assert "stands still in step" in record.getMessage()
    assert "is_told.wait(timeout=30)" in record.getMessage()
