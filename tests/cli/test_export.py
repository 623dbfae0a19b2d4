"""`ray-sassl export` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import ray_sassl
from ray_sassl.cli import app
from ray_sassl.process.errors import UsageError
from tests.exporting.conftest import MakeRun, make_run

__all__ = ["make_run"]


def _run(*args: str) -> str:
    """The command's output."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_export_writes_a_folder_and_says_what_is_in_it(make_run: MakeRun, tmp_path: Path):
    out = tmp_path / "encoder"
    output = _run("export", make_run(), "--with-head", "linear", "--out", str(out), "--license", "mit")
    assert "resnet20 at step 7, 64 features of 16 px images" in output
    assert "linear head: 100.00% of its train images right, 100.00% of the test images" in output
    assert f"Card: {out}/README.md" in output
    assert ray_sassl.load_encoder(out).head is not None


def test_the_data_of_the_head_can_be_given_on_the_command_line(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run("evaluate.train=null", "evaluate.test=null")
    data = f"evaluate.train={{path: {tmp_path}/test.parquet}}"
    assert "train images right\n" in _run("export", run_dir, data, "--with-head", "linear", "--out", str(tmp_path / "encoder"))


def test_an_export_that_does_not_suit_the_network_says_which_does(make_run: MakeRun, tmp_path: Path):
    with pytest.raises(UsageError, match=r"safetensors \(ray_sassl\.load_encoder reads it\) and onnx"):
        _run("export", make_run(), "--format", "torchvision", "--out", str(tmp_path / "encoder"))
