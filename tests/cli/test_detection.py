"""`ray-sassl detect` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ray_sassl.cli import app
from ray_sassl.process.errors import UsageError
from tests.evaluation.detection.conftest import write_data, write_example
from tests.exporting.conftest import MakeRun, make_run

__all__ = ["make_run"]

QUICK = ["architecture=fpn", "steps=2", "batch_size=2", "train_px=[48]", "test_px=48", "max_px=96", "fpn_channels=8", "hidden_size=16"]
QUICK += ["rois_per_image=16", "test_proposals=20"]


def _run(*args: str) -> str:
    """The command's output."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_detect_scores_the_encoder_and_the_untrained_one_and_writes_json(make_run: MakeRun, tmp_path: Path):
    folder = write_data(tmp_path / "voc", 6, 3)
    write_example(folder, "trainval0", [("square", (3, 3, 20, 20), 0), ("disc", (30, 5, 30, 20), 0)])
    run_dir = make_run()
    output = _run("detect", run_dir, str(folder), *QUICK, "--baselines", "--workers", "0")
    assert "train: 1 boxes without an area were dropped" in output
    assert "AP50" in output
    out = Path(run_dir) / "evaluation" / "step-00000007"
    assert f"Scores: {out}/detect.json" in output
    record = json.loads((out / "detect.json").read_text())
    assert list(record["scores"]) == ["step 7", "untrained encoder"]
    assert record["protocol"]["name"] == "detect"
    assert record["protocol"]["steps"] == 2
    assert record["details"]["step 7"]["train"]["boxes_without_area_dropped"] == 1
    assert all((out / file).exists() for file in record["files"].values())
    assert pq.read_table(out / "detect.parquet").column_names[0] == "image"
    assert not list(out.glob("*.pt"))


def test_evaluate_names_the_verb(make_run: MakeRun):
    with pytest.raises(UsageError, match="detection has its own verb"):
        _run("evaluate", make_run(), "detect")


def test_a_wrong_setting_is_answered_with_the_nearest(make_run: MakeRun, tmp_path: Path):
    with pytest.raises(UsageError, match="the nearest is steps"):
        _run("detect", make_run(), str(tmp_path), "step=5")
