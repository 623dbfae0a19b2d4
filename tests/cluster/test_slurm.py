"""The batch script for SLURM, under an `srun` that starts the processes of all nodes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_cli import TINY
from tests.orchestrate import shared_cluster
from tests.orchestrate.conftest import write_shards

SCRIPT = Path(__file__).parents[2] / "cluster/slurm/pretrain.sh"
SRUN = """#!/bin/bash
nodes=()
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && number=${1#*=}
  shift
done
for ((node = 0; node < number; node++)); do
  SLURM_NODEID=$node setsid "$@" &
  nodes+=($!)
done
trap 'kill -- "${nodes[@]/#/-}"; wait; exit 143' TERM
wait
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$ASKED"
"""
PATIENCE_S = 300


@contextmanager
def _job(folder: Path, num_nodes: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script as the batch step of a job, with one CPU on each node."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="t") as temporary, (folder / "log").open("a") as log:  # short, for sockets
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(SCRIPT.parents[2])])),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_NNODES": str(num_nodes),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_MEM_PER_NODE": "1024",
            "RAY_SASSL_TEMP": temporary,
            "ASKED": str(folder / "asked"),
        }
        with subprocess.Popen(["bash", SCRIPT, *words], stdout=log, stderr=log, env=environment, start_new_session=True) as process:
            try:
                yield process
                assert not os.listdir(temporary)  # the nodes' folders are gone
            finally:
                if process.poll() is None:
                    process.terminate()


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_whose_time_is_nearly_up_is_queued_again_and_continues(forking_ray: None, tmp_path: Path):
    shared_cluster.stop()  # commands inherit its environment, which keeps Ray to this machine
    run_dir, log = tmp_path / "run", tmp_path / "log"
    scored = ("evaluate.train=null", "evaluate.test=null")
    words = ("moco_cifar10_cpu", f"data.path={write_shards(tmp_path)}", *scored, *TINY, "--run-dir", str(run_dir))
    with _job(tmp_path, 2, *words, "train.epochs=100", "scaling.num_workers=1") as job:
        metrics, until = run_dir / "metrics.jsonl", time.monotonic() + PATIENCE_S
        while not metrics.exists() or metrics.read_text().count("\n") < 4:
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)  # as `--signal=B:USR1@120` has it sent, to the script alone
        assert job.wait(PATIENCE_S) == 138, log.read_text()
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stopped_by"]) == ("interrupted", "SIGUSR1")
    stopped_at = summary["step"]
    with _job(tmp_path, 1, *words, f"train.epochs={(stopped_at + 4) * 16 / 160}", "scaling.num_workers=0") as job:
        assert job.wait(PATIENCE_S) == 0, log.read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", stopped_at + 4)
    assert (tmp_path / "asked").read_text().count("\n") == 1
