"""The task for SkyPilot: its fields, what is refused, and its script with pretended commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.check import check_text

FILE = Path(__file__).parents[2] / "cluster/skypilot.yaml"


def _findings(text: str) -> list[str]:
    return [f"{finding.where}: {finding.text}" for finding in check_text(text, "the file", "2.60.0", None, lambda config: [])]


def test_the_task_that_is_shipped_passes():
    assert _findings(FILE.read_text()) == []


BROKEN: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "misspelled field": (("num_node",), 2, r"num_node: SkyPilot has no such field \(did you mean 'num_nodes'\?\)"),
    "misspelled resource": (("resources", "use_spots"), True, "did you mean 'use_spot'"),
    "text for a number": (("num_nodes",), "two", "num_nodes: 'two' has a type"),
    "a truth value for a number": (("num_nodes",), True, "num_nodes: True has a type"),
    "misspelled candidate": (("resources", "any_of"), [{"infa": "aws"}], r"any_of\[0\]\.infa: .*did you mean 'infra'"),
    "open ports": (("resources", "ports"), 8265, "opens these ports to the whole Internet"),
    "another Ray": (("resources", "image_id"), "docker:x/ray-sassl:1-ray2.54.0", "has Ray 2.54.0"),
    "no container": (("resources", "image_id"), None, "names no container"),
    "a small disk": (("resources", "disk_size"), 50, "50 GB are too few"),
    "no recovery": (("resources", "job_recovery"), None, "job_recovery: is missing"),
    "a secret in the file": (("secrets", "WANDB_API_KEY"), "abc", "secrets.WANDB_API_KEY: has its value in the file"),
    "a secret among the variables": (("envs", "WANDB_API_KEY"), "abc", "WANDB_API_KEY is given by value"),
    "no token": (("run",), "ray start --head", "without token authentication"),
    "SkyPilot's own Ray": (("run",), "ray stop", "ends SkyPilot's own Ray too"),
    "an open dashboard": (("run",), "export RAY_AUTH_MODE=token; ray start --head --dashboard-host=0.0.0.0", "on every interface"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_is_refused_for_its_reason(case: str):
    (*path, field), value, reason = BROKEN[case]
    task = yaml.safe_load(FILE.read_text())
    node = task
    for name in path:
        node = node[name]
    node[field] = value
    (found,) = _findings(yaml.safe_dump(task))
    assert re.search(reason, found), found


RAY = """#!/bin/bash
echo "ray $*" >> "$ASKED"
[ "$1" = start ] && exec sleep 60
exit 0
"""
RECORD = """#!/bin/bash
echo "$(basename "$0") $*" >> "$ASKED"
exit ${CODE:-0}
"""


def _run(folder: Path, rank: int, **settings: str) -> tuple[int, list[str]]:
    """The exit code of the script on a machine, and the commands that it has called."""
    for name, text in (("ray", RAY), ("ray-sassl", RECORD), ("python", RECORD.replace("${CODE:-0}", "0"))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    asked = folder / "asked"
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(asked), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_GPUS_PER_NODE": "8", "EXPERIMENT": "moco_imagenet", "RUN_DIR": "s3://b/runs/x",
        "CHANGES": "data.path=s3://b/train-*.tar evaluate.train=null", "NOTICES": "gcp",
    }  # fmt: skip
    script = yaml.safe_load(FILE.read_text())["run"]
    with subprocess.Popen(["bash", "-c", script], env=env | settings, cwd=folder, stderr=subprocess.DEVNULL) as process:
        if rank:  # until the head has gone, which ends the node
            while not (asked.exists() and "ray start" in asked.read_text()):
                assert process.poll() is None
            subprocess.run(["pkill", "-P", str(process.pid), "sleep"], check=True)
        code = process.wait(timeout=30)
    return code, sorted(asked.read_text().splitlines())


def test_the_first_machine_runs_the_command_and_exits_as_it_does(tmp_path: Path):
    code, asked = _run(tmp_path, 0, CODE="138")
    assert code == 138
    (command,) = [line for line in asked if line.startswith("ray-sassl ")]
    assert command == (
        "ray-sassl pretrain moco_imagenet scaling.num_workers=16 data.path=s3://b/train-*.tar evaluate.train=null "
        "--run-dir s3://b/runs/x --address 10.0.0.1:6379 --resume-if-begun"
    )
    assert any(line.startswith("ray start --head --port=6379 --dashboard-host=127.0.0.1") for line in asked)
    assert "python -m ray_sassl.cluster.notices gcp --address=10.0.0.1:6379" in asked


def test_the_others_join_and_end_well_when_it_has_gone(tmp_path: Path):
    code, asked = _run(tmp_path, 1, NOTICES="")
    assert code == 0
    assert asked[0] == "ray health-check --address 10.0.0.1:6379"
    assert asked[1].startswith("ray start --address=10.0.0.1:6379 --block")
    assert len(asked) == 2
