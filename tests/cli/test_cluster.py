"""`ray-sassl cluster plan`: from an experiment and measured rates to a table, a curve and numbers in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ray_sassl.cli.cluster import app, target
from ray_sassl.process.errors import UsageError

CLUSTER = Path(__file__).parents[2] / "cluster"
RATES = {"decode_images_per_core_s": 200, "train_images_per_gpu_s": 1000, "stylize_images_per_gpu_s": 950, "num_images": 100_000}
CONFIG = ["demo", "stream.layout=pool", "stream.pool.num_gpus=0.5", "train.global_batch=128"]


@pytest.fixture
def measured(tmp_path: Path) -> str:
    (tmp_path / "bench.json").write_text(json.dumps(RATES))
    return str(tmp_path / "bench.json")


def test_a_plan_is_printed_drawn_and_written(measured: str, tmp_path: Path):
    launcher, job = tmp_path / "aws.yaml", tmp_path / "job.yaml"
    launcher.write_text((CLUSTER / "aws.yaml").read_text())
    job.write_text((CLUSTER / "kuberay/job/rayjob.yaml").read_text())
    options = ["--measured", measured, "--prices", str(CLUSTER / "prices.yaml"), "--target-images-per-s", "3500"]
    options += ["--out", str(tmp_path / "plan.png"), "--write", str(launcher), "--write", str(job)]
    run = CliRunner().invoke(app, ["plan", *CONFIG, *options])
    assert run.exit_code == 0, run.output
    assert "on 4 GPUs that train" in run.output
    assert "The bottleneck is train" in run.output
    pool = "stream.pool.min=10 stream.pool.initial=10 stream.pool.max=10 stream.pool.num_gpus=0.5"
    assert f"Run it with: scaling.num_workers=4 scaling.use_gpu=true {pool}\n" in run.output
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    types = yaml.safe_load(launcher.read_text())["available_node_types"]
    # 4 GPUs at 1,000 images/s, less 2 % of waiting for the slowest, and 15 % beyond: 4,507 / 950 stylizers.
    assert {name: types[name]["max_workers"] for name in ("decode", "stylize", "train")} == {"decode": 0, "stylize": 5, "train": 1}
    groups = yaml.safe_load(job.read_text())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in groups] == [0, 5, 1]


def test_without_prices_the_cost_is_unknown_and_a_budget_refused(measured: str, tmp_path: Path):
    options = ["--measured", measured, "--out", str(tmp_path / "plan.png")]
    run = CliRunner().invoke(app, ["plan", *CONFIG, *options])
    assert run.exit_code == 0, run.output
    assert "unknown (give --prices)" in run.output
    run = CliRunner().invoke(app, ["plan", *CONFIG, *options, "--budget", "10"])
    assert isinstance(run.exception, UsageError)
    assert "a budget needs the price of every group" in str(run.exception)


def test_a_plan_needs_measurements():
    run = CliRunner().invoke(app, ["plan", "demo"])
    assert isinstance(run.exception, UsageError)
    assert "--measured" in str(run.exception)


def test_targets_are_understood_or_refused():
    with pytest.raises(UsageError, match="'24' is not a length of time"):
        target(None, "24", None)
    assert target(None, "2h", None).hours == 2
    with pytest.raises(UsageError, match="--target-images-per-s and --budget are given"):
        target(5, None, 3)
