"""The long verbs, ended by a signal while they work: they keep what is finished, exit with the signal's code, and the same command goes on.

The command runs in this process, in which a thread sends the signal once a file is there; see `test_stops.py` for processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ray_sassl.files.lock import LOCK
from tests.cli.in_process import call_main
from tests.cli.test_cli import TINY
from tests.cli.test_detection import QUICK
from tests.evaluation.detection.conftest import write_data
from tests.exporting.conftest import MakeRun, make_run, write_images
from tests.orchestrate.conftest import write_shards

__all__ = ["make_run"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Command = Callable[..., tuple[object, str]]


@pytest.fixture
def command(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command, which gets the signal as soon as `when` is true; returns its exit code and what it has printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, when: Callable[[], bool] = lambda: False, number: int = signal.SIGTERM) -> tuple[object, str]:
        has_ended = threading.Event()

        def send() -> None:
            while not when():
                if has_ended.wait(0.01):
                    return
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            code, out = call_main(words, monkeypatch)
        finally:
            has_ended.set()
            sender.join()
        return code, " ".join(out.split())

    return run


def _waits_for_a_notice() -> bool:
    return "on_notice" in getattr(signal.getsignal(signal.SIGTERM), "__qualname__", "")


def test_a_stylized_copy_keeps_its_shards(command: Command, tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    words = ["stylize", "dataset", write_shards(source, num_rows=400), str(target), "stylize=color_statistics", "--shard-rows", "1"]
    words += ["--format", "webdataset", "--actors", "1", "--actor-cpus", "0.5"]
    code, out = command(*words, when=lambda: len(list(target.glob("*.tar"))) > 2, number=signal.SIGHUP)
    assert code == 129, out
    assert "The same command goes on" in out
    assert not (target / LOCK).exists()
    there = len(list(target.glob("*.tar")))
    assert 2 < there < 400
    code, out = command(*words)
    assert code == 0, out
    counts = re.search(r"400 images in 400 shards in \S+: (\d+) written now, (\d+) were there already", out)
    assert counts is not None, out
    assert int(counts[2]) >= there  # the actor, which is killed, may have ended one more


def test_features_keep_their_parts(command: Command, make_run: MakeRun, tmp_path: Path):
    write_images(tmp_path / "many.parquet", 400, group_rows=4)
    out_path, run_dir = tmp_path / "features", make_run()
    words = ["embed", run_dir, str(tmp_path / "many.parquet"), "--out", str(out_path), "--part-rows", "4", "--actor-cpus", "0.5"]
    code, out = command(*words, when=lambda: len(list(out_path.glob("*.parquet"))) > 1)
    assert code == 143, out
    there = len(list(out_path.glob("*.parquet")))
    assert 1 < there < 100
    assert not (out_path / LOCK).exists()
    code, out = command(*words)
    assert code == 0, out
    assert f"{100 - there} parts made now, {there} were there already" in out
    assert sum(pq.read_metadata(path).num_rows for path in out_path.glob("*.parquet")) == 400


def test_an_evaluation_keeps_its_protocols(command: Command, make_run: MakeRun):
    run_dir = make_run()
    folder = Path(run_dir) / "evaluation" / "step-00000007"
    words = ["evaluate", run_dir, "knn", "finetune", "finetune.epochs=300", "--baselines"]
    code, out = command(*words, when=(folder / ".unfinished.json").exists)
    assert code == 143, out
    assert "The same command goes on" in out
    written = (folder / "knn.json").stat().st_mtime_ns
    code, out = command(*[word.replace("300", "1") for word in words])
    assert code == 0, out
    assert (folder / "knn.json").stat().st_mtime_ns == written
    assert {"knn.json", "finetune.json"} <= set(os.listdir(folder))
    assert not (folder / ".unfinished.json").exists()
    assert command(*words[:3])[0] == 0
    assert (folder / "knn.json").stat().st_mtime_ns > written


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_detection_writes_a_checkpoint(workers: str, command: Command, make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    file = Path(run_dir) / "evaluation" / "step-00000007" / "detect-checkpoint.pt"
    steps = ["steps=12", "checkpoint_every=2", "--workers", workers, "--worker-cpus", "0.5"]
    words = ["detect", run_dir, str(write_data(tmp_path / "voc", 6, 2)), *QUICK, *steps]
    words.remove("steps=2")
    code, out = command(*words, when=file.exists)
    assert code == 143, out
    assert "The same command goes on" in out
    step = torch.load(file, weights_only=True)["step"]
    assert 2 <= step < 12
    code, out = command(*words)
    assert code == 0, out
    assert not file.exists()
    losses = json.loads((file.parent / "detect.json").read_text())["details"]["step 7"]
    assert f'"step": {step}' in json.dumps(losses)


def test_a_distillation_keeps_its_crops_and_steps(command: Command, weights_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))
    data, out_path = write_shards(tmp_path, num_rows=40), tmp_path / "student.safetensors"
    work = tmp_path / "student.safetensors.work"
    words = ["stylize", "distill", data, "--styles", data, "--out", str(out_path), "--crops", "72", "--steps", "8", "--batch-size", "4"]
    words += ["--size-px", "32", "--worker-cpus", "0.5"]
    code, out = command(*words, when=lambda: (work / "job.json").exists() and _waits_for_a_notice())
    assert code == 143, out
    kept = [path.name for path in work.glob("crops-*")]
    assert kept == ["crops-0-of-1-part-0.safetensors"]
    code, out = command(*words, when=(work / "crops-0-of-1.safetensors").exists)
    assert code == 143, out
    assert "The same command goes on" in out
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] < 8
    code, out = command(*words)
    assert code == 0, out
    assert out_path.exists()


def test_a_search_keeps_its_trials(command: Command, tmp_path: Path):
    space, study_dir = tmp_path / "rates.yaml", tmp_path / "study"
    space.write_text(
        "{experiment: moco_cifar10_cpu, searcher: random, scheduler: fifo, "
        "parameters: [{kind: float, path: optim.base_lr, low: 0.01, high: 0.1}]}"
    )
    path = write_shards(tmp_path)
    data = [f"data.path={path}", f"evaluate.train={{path: {path}}}", "evaluate.test=null", "evaluate.validation=0.4"]
    words = ["search", "run", str(space), *data, *TINY, "scaling.num_workers=0", "train.epochs=4", "fault.grace_s=200", "--trials", "1"]
    words += ["--study-dir", str(study_dir), "--resume-if-begun"]

    def has_begun() -> bool:
        return any(file.read_text().count("\n") > 1 for file in study_dir.glob("trials/*/metrics.jsonl"))

    code, out = command(*words, when=has_begun, number=signal.SIGHUP)
    assert code == 129, out
    assert "the same command with --resume continues" in out
    (run_dir,) = [file.parent for file in study_dir.glob("trials/*/metrics.jsonl")]
    stopped = json.loads((run_dir / "summary.json").read_text())
    assert stopped["status"] == "interrupted"
    assert 0 < stopped["step"] < 40
    code, out = command(*words)
    assert code == 0, out
    assert json.loads((run_dir / "summary.json").read_text())["step"] == 40
