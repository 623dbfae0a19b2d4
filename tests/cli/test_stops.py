"""Commands that are stopped from outside: what they leave, what they exit with, and that the same command goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import descendants
from ray_sassl.orchestrate.pretraining import launch
from tests.cli.in_process import call_main
from tests.cli.test_cli import TINY
from tests.orchestrate.conftest import write_shards

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300


def _pretrain(folder: Path, *overrides: str) -> list[str]:
    data = f"data.path={write_shards(folder)}"
    return [
        "pretrain",
        "moco_cifar10_cpu",
        data,
        "evaluate.train=null",
        "evaluate.test=null",
        *TINY,
        *overrides,
        "--run-dir",
        str(folder / "run"),
    ]


@contextmanager
def _begun(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own, as a terminal or a batch system starts it, with a temporary folder of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-m", "ray_sassl.cli", *words]
    with tempfile.TemporaryDirectory(prefix="t") as temporary, (folder / "log").open("w") as log:  # short, for sockets
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment | {"TMPDIR": temporary}, start_new_session=True
        )
        try:
            yield process
            assert not [name for name in os.listdir(temporary) if name.startswith("ray")]
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], folder: Path, is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until, (folder / "log").read_text()
        time.sleep(0.02)


def _num_steps(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def _alive(pids: dict[int, str]) -> list[str]:
    def is_alive(pid: int) -> bool:
        try:
            return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [words for pid, words in pids.items() if is_alive(pid)]


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_to_a_run_and_its_group_leaves_a_checkpoint_and_no_process_and_the_same_command_resumes(forking_ray: None, tmp_path: Path):
    words, run_dir = _pretrain(tmp_path, "scaling.num_workers=2"), tmp_path / "run"
    with _begun(tmp_path, *words, "train.epochs=100", "fault.grace_s=200") as process:
        _wait(process, tmp_path, lambda: _num_steps(run_dir) > 5)
        began = descendants(process.pid)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) == 143, (tmp_path / "log").read_text()
        assert not _alive(began)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", "SIGTERM")
    stopped_at = summary["step"]
    assert stopped_at > 0
    assert Path(summary["checkpoint"]).name == f"step-{stopped_at:08d}"
    epochs = (stopped_at + 4) * 16 / 160
    with _begun(tmp_path, *words, f"train.epochs={epochs}", "--resume") as process:
        assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", stopped_at + 4)
    steps = [json.loads(line)["step"] for line in io.StringIO((run_dir / "metrics.jsonl").read_text())]
    assert sorted(set(steps)) == list(range(1, stopped_at + 5))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_to_a_run_in_one_process_leaves_a_checkpoint_of_its_last_step(name: str, code: int, tmp_path: Path):
    run_dir = tmp_path / "run"
    with _begun(tmp_path, *_pretrain(tmp_path, "train.epochs=500", "scaling.num_workers=0", "fault.grace_s=200")) as process:
        _wait(process, tmp_path, lambda: _num_steps(run_dir) > 2)
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=PATIENCE_S) == code, (tmp_path / "log").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", name)
    assert Path(summary["checkpoint"]).name == f"step-{_num_steps(run_dir):08d}"


@pytest.mark.slow
def test_a_run_that_cannot_stop_within_its_grace_ends_at_once_with_a_summary(tmp_path: Path):
    run_dir = tmp_path / "run"
    words = _pretrain(tmp_path, "train.epochs=500", "train.checkpoint_every=2", "scaling.num_workers=0", "fault.grace_s=1e-6")
    with _begun(tmp_path, *words) as process:
        _wait(process, tmp_path, lambda: _num_steps(run_dir) > 4)
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 143, (tmp_path / "log").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", "SIGTERM")
    assert "fault.grace_s=1e-06 s were not enough" in summary["reason"]
    assert summary["step"] > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_conversion_that_sigterm_ends_keeps_its_shards_and_goes_on(forking_ray: None, tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    words = ["data", "convert", write_shards(source, num_rows=1200), str(target), "--format", "webdataset", "--shard-rows", "1"]
    with _begun(tmp_path, *words) as process:
        _wait(process, tmp_path, lambda: len(list(target.glob("*.tar"))) > 3)
        began = descendants(process.pid)
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 143, (tmp_path / "log").read_text()
        assert not _alive(began)
    assert "The same command goes on" in (tmp_path / "log").read_text()
    there = len(list(target.glob("*.tar")))
    with _begun(tmp_path, *words) as process:
        assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert f"{there:,} were there already" in " ".join((tmp_path / "log").read_text().split())
    assert len(list(target.glob("*.tar"))) == 1200


def test_a_signal_while_the_first_steps_are_timed_ends_the_command_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train_process = launch.train_process

    def stopped(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return train_process(*args, **options)

    monkeypatch.setattr(launch, "train_process", stopped)
    words = [*_pretrain(tmp_path, "scaling.num_workers=0", "train.epochs=1"), "--minutes", "1"]
    code, out = call_main(words, monkeypatch)
    assert code == 143, out
    assert not (tmp_path / "run").exists()
