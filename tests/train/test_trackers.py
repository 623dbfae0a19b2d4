"""Trackers that fail or stand still: the training goes on, all is said once, and the end waits for a few seconds at most."""

from __future__ import annotations

import errno
import json
import logging
import struct
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

import ray_sassl
from ray_sassl.process.errors import UsageError
from ray_sassl.train import metrics as metrics_module
from ray_sassl.train import trackers
from ray_sassl.train.metrics import MetricsLog, TrackingConfig
from ray_sassl.train.trackers import InBackground, TensorBoard, close_all, import_tracker
from tests.test_api import overrides_for, write_photos

FULL = OSError(errno.ENOSPC, "No space left on device")


class _Tracker:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.is_closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(step)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def _steps_in(folder: Path) -> list[tuple[str, int]]:
    """(name, step) of every scalar in the event files of a folder, each file until its first torn record."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while len(content) >= 12:
            (length,) = struct.unpack("<Q", content[:8])
            if len(content) < 16 + length:
                break
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step) for value in event.summary.value]
            content = content[16 + length :]
    return found


def test_everything_logged_is_written_at_the_end():
    inner = _Tracker()
    tracker = InBackground("X", lambda: inner)
    for step in range(100):
        tracker.log(step, {"loss": 1.0})
    close_all([tracker])
    assert inner.steps == list(range(100))
    assert inner.is_closed


def test_a_tracker_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    may_go_on, is_there = threading.Event(), threading.Event()

    class Stalled(_Tracker):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            is_there.set()
            may_go_on.wait()

    tracker = InBackground("Stalled", Stalled, most=5)
    tracker.log(0, {})
    is_there.wait()
    for step in range(1, 50):
        tracker.log(step, {})
        tracker.flush()
    close_all([tracker])
    may_go_on.set()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "Stalled does not keep up, and 5 steps are waiting for it already. The run goes on" in said[0]
    assert "lacks 50 of the 50 steps" in said[1]


def test_a_tracker_that_cannot_be_made_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    may_go_on = threading.Event()

    def connect() -> _Tracker:
        may_go_on.wait()
        return _Tracker()

    tracker = InBackground("Remote", connect)
    tracker.log(0, {})
    close_all([tracker])
    may_go_on.set()
    assert "Remote does not answer. The run goes on" in caplog.text


def test_an_error_is_logged_once_without_secrets_and_later_steps_are_tried(caplog: pytest.LogCaptureFixture):
    class Failing(_Tracker):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            if step < 3:
                raise ConnectionError("https://user:hunter2@tracker.example.org does not answer")
            super().log(step, metrics)

    inner = Failing()
    tracker = InBackground("Remote", lambda: inner)
    for step in range(5):
        tracker.log(step, {})
    close_all([tracker])
    assert inner.steps == [3, 4]
    assert caplog.text.count("does not answer") == 1
    assert "hunter2" not in caplog.text
    assert "Remote lacks 3 of the 5 steps that were logged" in caplog.text


def test_event_files_go_on_in_another_file_once_the_disk_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = RecordWriter.write
    num_writes = 0

    def torn(self: RecordWriter, data: bytes) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes == 4:  # file version, 1/a, 1/b, then a part of 2/a
            self._writer.write(data[:5])
            self._writer.flush()
            raise FULL
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", torn)
    board = TensorBoard(str(tmp_path / "tensorboard"), 0)
    board.log(1, {"a": 1.0, "b": 2.0})
    with pytest.raises(OSError, match="No space left"):
        board.log(2, {"a": 1.0, "b": 2.0})
    board.log(3, {"a": 1.0, "b": 2.0})
    board.close()
    assert sorted(_steps_in(tmp_path / "tensorboard")) == [("a", 1), ("a", 3), ("b", 1), ("b", 3)]


def test_tensorboard_hides_what_was_logged_after_the_checkpoint_that_a_run_resumes_from(tmp_path: Path):
    log = MetricsLog(str(tmp_path), TrackingConfig(), {}, resume_step=7)
    log.log(8, {"loss": 1.0})
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert _steps_in(tmp_path / "tensorboard") == [("loss", 8)]
    purge = Event(step=7, session_log={"status": 1}).SerializeToString()
    assert purge in path.read_bytes(), "TensorBoard drops events of step 7 and later that stand before this one"


def test_lines_that_found_no_room_are_written_once_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    append = metrics_module._JsonLines._append
    failures = 2

    def torn(self, path: Path, content: bytes) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            with path.open("ab") as file:
                file.write(content[: len(content) // 2])
            raise FULL
        append(self, path, content)

    log = MetricsLog(str(tmp_path), TrackingConfig(tensorboard=False), {})
    log.log(1, {"loss": 1.0})
    monkeypatch.setattr(metrics_module._JsonLines, "_append", torn)
    for step in range(2, 6):
        log.log(step, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert caplog.text.count("No space left") == 1


def test_lines_that_never_found_room_are_counted_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    def full(self, path: Path, content: bytes) -> None:
        raise FULL

    log = MetricsLog(str(tmp_path), TrackingConfig(tensorboard=False), {})
    log.log(1, {"loss": 1.0})
    monkeypatch.setattr(metrics_module._JsonLines, "_append", full)
    for step in range(2, 6):
        log.log(step, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]
    assert "lacks the last 4 lines" in caplog.text


@pytest.mark.slow
def test_a_run_ends_well_with_a_tracker_that_stalls_and_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    may_go_on = threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: may_go_on.wait()))  # type: ignore[arg-type]
    options = overrides_for(write_photos(tmp_path / "photos")) | {"tracking.tensorboard": True, "tracking.wandb_project": "mine"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        result = ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=options)
    may_go_on.set()
    assert (result.status, result.step) == ("finished", 3)
    assert result.checkpoint is not None
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 3]
    assert caplog.text.count("TensorBoard failed: FileExistsError") == 1
    assert caplog.text.count("Weights & Biases does not answer") == 1


def test_a_missing_package_is_reported_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"tracking.mlflow_experiment needs MLflow: pip install 'ray-sassl\[mlflow\]'"):
        import_tracker("mlflow", "MLflow", "mlflow_experiment")
