"""The benchmark for GPUs runs to its end on a CPU, and without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_RAY = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
SIZES = ["--batch-size", "4", "--size-px", "32", "--steps", "1", "--rounds", "1", "--images", "12", "--network", "resnet20"]


@pytest.mark.slow
def test_it_runs_on_a_cpu_without_ray(tmp_path: Path):
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, "-c", WITHOUT_RAY, *SIZES, "--device", "cpu", "--out", str(out)], check=True, timeout=600)
    found = json.loads(out.read_text())
    training = found["training"]["resnet20"]
    assert {f"{form}_images_per_s" for form in ("bare", "step", "loop", "loader", "stylized")} <= training.keys()
    assert all(value > 0 for value in training.values())
    assert found["stylizing"].keys() == {"swift", "magenta"}
    assert all(value["bfloat16_share_of_limit"] > 0 for value in found["stylizing"].values())
    (goal,) = found["goals"]
    assert (goal["measured"], goal["goal"]) == (training["step_over_bare"], 0.95)
