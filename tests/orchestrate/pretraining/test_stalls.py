"""A run on Ray that stands still says which worker, which process of the stream, or which lack of memory it is."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import ray

from benchmarks.processes import TRAIN_WORKER, doing
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, object_store_use
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.train.speed import Speed
from tests.orchestrate.conftest import small_config, write_shards

pytestmark = pytest.mark.ray


def test_a_stopped_worker_is_named_once_and_each_epoch_says_what_holds_the_run_up(ray_cluster: None, tmp_path: Path):
    config = apply_overrides(
        small_config(write_shards(tmp_path), epochs=40, num_workers=2),
        ["train.log_every=1", "fault.stall_s=3", "evaluate.train=null", "evaluate.test=null"],
    )
    stop, notes, speeds, stopped = threading.Event(), list[str](), list[Speed](), list[int]()

    def watch(update: ProgressUpdate) -> None:
        notes.extend(note for note in update.notes if "No step for" in note)
        speeds.extend([update.speed] if update.speed else [])
        if speeds and not stopped:
            stopped.append(doing(TRAIN_WORKER)[-1])
            os.kill(stopped[0], signal.SIGSTOP)
        if notes and not stop.is_set():
            os.kill(stopped[0], signal.SIGCONT)
            stop.set()

    try:
        result = pretrain(config, str(tmp_path / "run"), watch=watch, stop=stop)
    finally:
        for process in stopped:
            if Path(f"/proc/{process}").exists():
                os.kill(process, signal.SIGCONT)
    assert result.status == "interrupted"
    (note,) = notes
    named = re.search(r"Worker (\d) \(process (\d+) on [\d.]+\) has not answered for \d+ s: its process is stopped", note)
    assert named is not None, note
    assert int(named[2]) == stopped[0]
    assert "ray_sassl/train/loop.py" in note
    assert result.speed is not None
    assert len(result.speed["ranks"]) == 2
    assert result.speed["bottleneck"].startswith("Training ")


def test_the_share_of_the_object_store_that_is_in_use_is_known(ray_cluster: None):
    before = object_store_use()
    held = ray.put(np.zeros(int(0.3 * ray.cluster_resources()["object_store_memory"]), np.uint8))
    ready = threading.Event()
    while object_store_use() < before + 0.2 and not ready.wait(0.1):
        pass
    del held
