"""One run, stopped again and again by SIGTERM and SIGHUP, and started twice at once each time: it ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from ray_sassl.train.checkpoint import latest_checkpoint
from tests.cli.test_stops import PATIENCE_S, _begun, _num_steps, _pretrain, _wait

pytestmark = pytest.mark.chaos

CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129}


def _weights(run_dir: Path) -> bytes:
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    return (Path(checkpoint.path) / "model.safetensors").read_bytes()


def _stop_once(words: list[str], run_dir: Path, other: Path, number: signal.Signals, more: int) -> None:
    """Start the run, and once more meanwhile, which is refused; stop it after some steps."""
    folder, first = run_dir.parent, _num_steps(run_dir)
    with _begun(folder, *words) as process:
        _wait(process, folder, lambda: _num_steps(run_dir) > first)
        with _begun(other, *words) as second:
            refused = second.wait(timeout=PATIENCE_S)
        assert refused == 2, (other / "log").read_text()
        _wait(process, folder, lambda: _num_steps(run_dir) > first + more)
        os.killpg(process.pid, number)
        assert process.wait(timeout=PATIENCE_S) == CODES[number], (folder / "log").read_text()
    assert "is in use" in " ".join((other / "log").read_text().split())
    assert json.loads((run_dir / "summary.json").read_text())["stopped_by"] == number.name


def test_a_run_that_is_stopped_again_and_again_and_started_twice_ends_as_an_undisturbed_one(tmp_path: Path):
    draw = random.Random(0)
    words = [*_pretrain(tmp_path, "train.epochs=30", "scaling.num_workers=0", "fault.grace_s=200"), "--resume-if-begun"]
    run_dir, calm = tmp_path / "run", tmp_path / "calm"
    with _begun(tmp_path, *[str(calm) if word == str(run_dir) else word for word in words]) as process:
        assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    other = tmp_path / "other"
    other.mkdir()
    for number in CODES:
        _stop_once(words, run_dir, other, number, draw.randint(1, 4))
    with _begun(tmp_path, *words) as process:
        assert process.wait(timeout=PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert _weights(run_dir) == _weights(calm)
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 301))
