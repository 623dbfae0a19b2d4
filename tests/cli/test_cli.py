"""The commands as a person types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ray_sassl.cli import app
from ray_sassl.config.files import from_yaml
from ray_sassl.experiments import experiments, load_experiment
from ray_sassl.process.errors import UsageError
from tests.orchestrate.conftest import write_held_shards, write_shards

TINY = [
    "method.queue_size=32",
    "train.global_batch=16",
    "train.log_every=1",
    "scaling.threads_per_worker=1",
    "scaling.cpus_per_worker=0.5",
    "views.size_px=16",
    "evaluate.size_px=16",
]


def _run(*args: str) -> str:
    """The command's output."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _data(folder: Path) -> list[str]:
    path = write_shards(folder)
    return [f"data.path={path}", f"evaluate.train.path={path}", f"evaluate.test.path={write_held_shards(folder)}"]


def test_every_verb_shows_an_example_in_its_help():
    command = typer.main.get_command(app)
    verbs = []
    for name, verb in command.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        verbs += [(name, part) for part in verb.commands] if hasattr(verb, "commands") else [(name,)]
    assert {("data", "inspect"), ("stylize", "bank"), ("weights", "fetch"), ("pretrain",)} <= set(verbs)
    for verb in verbs:
        assert verb == ("version",) or "Example" in _run(*verb, "--help"), verb


def test_the_help_lists_every_verb_once_in_a_section_of_its_own_kind():
    listed = [line.split()[0] for line in _run("--help").partition("Start here:")[2].splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert "More:" not in _run("--help")


def test_experiments_are_listed_and_printed_as_a_config_that_reads_back():
    listed = _run("experiments")
    assert all(name in listed for name in experiments())
    assert from_yaml(_run("experiments", "byol_imagenet_sassl")) == load_experiment("byol_imagenet_sassl")


def test_a_printed_experiment_can_be_changed_and_run_from_its_file(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(_run("experiments", "moco_cifar10_cpu"))
    _run("pretrain", str(file), *_data(tmp_path), *TINY, "train.epochs=0.3", "scaling.num_workers=0", "--run-dir", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_wrong_path_or_name_is_answered_with_the_nearest_right_one():
    with pytest.raises(UsageError, match=r"the nearest is train\.epochs"):
        _run("pretrain", "moco_cifar10_cpu", "train.epoch=3")
    with pytest.raises(UsageError, match="did you mean 'moco_cifar10'"):
        _run("views", "moco_cifar")


def test_a_directory_that_holds_a_run_is_not_started_in_again(tmp_path: Path):
    args = [
        "pretrain",
        "moco_cifar10_cpu",
        *_data(tmp_path),
        *TINY,
        "train.epochs=0.2",
        "scaling.num_workers=0",
        "--run-dir",
        str(tmp_path / "r"),
    ]
    _run(*args)
    with pytest.raises(UsageError, match="already contains a run; add --resume"):
        _run(*args)
    with pytest.raises(UsageError, match=r"has another method\.temperature"):
        _run(*args, "--resume", "method.temperature=0.5")
    with pytest.raises(UsageError, match="contains no run to resume"):
        _run(*args[:-1], str(tmp_path / "other"), "--resume")


def test_views_draws_each_side_with_and_without_style(tmp_path: Path):
    out = tmp_path / "views.png"
    output = _run("views", "moco_cifar10_sassl", *_data(tmp_path)[:1], "--rows", "3", "--out", str(out), "--dose", "--against", "fda")
    assert re.search(r"left .* style, fda .* 80%", output)
    assert re.search(r"Equal dose: stylize=fda 'sassl\.alpha=\[.*\]' 'sassl\.beta=\[.*\]'", output)
    styled = Image.open(out)
    _run("views", "moco_cifar10", *_data(tmp_path)[:1], "--rows", "3", "--out", str(out))
    plain = Image.open(out)
    assert styled.height > 3 * 112
    assert styled.width > 7 * 112
    assert 4 * 112 < plain.width < 5 * 112


def test_evaluate_scores_a_run_and_its_baselines_and_writes_json(tmp_path: Path):
    run_dir = str(tmp_path / "run")
    _run("pretrain", "moco_cifar10_cpu", *_data(tmp_path), *TINY, "train.epochs=0.2", "scaling.num_workers=0", "--run-dir", run_dir)
    output = _run("evaluate", run_dir, "knn", "k=5", "--baselines")
    assert all(name in output for name in ("step 2", "untrained encoder", "raw pixels", "chance"))
    folder = tmp_path / "run" / "evaluation"
    record = json.loads((folder / "step-00000002" / "knn.json").read_text())
    assert record["protocol"]["k"] == 5
    assert record["scores"]["raw pixels"]["top1"]["value"] == 1.0  # the bytes of train and test images are the same
    assert pq.read_table(folder / "step-00000002" / record["files"]["predictions"]).num_rows == 160
    features = sorted((folder / "features").iterdir())
    assert len(features) == 4  # of the encoder and of the untrained one, train and test
    _run("evaluate", record["checkpoint"], "linear", "knn", "l2=1e-2", "--out", str(tmp_path / "results"))
    scores = json.loads((tmp_path / "results" / "linear.json").read_text())["scores"]["step 2"]
    assert 0 <= scores["top1"]["low"] <= scores["top1"]["value"] <= scores["top1"]["high"] <= 1
    assert sorted((folder / "features").iterdir()) == features
    with pytest.raises(UsageError, match="not a run directory with a valid one"):
        _run("evaluate", str(tmp_path), "knn")
