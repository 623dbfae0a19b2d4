"""`ray-sassl report`, `compare` and `evaluate RUN all` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ray_sassl.api import pages
from ray_sassl.cli import app
from ray_sassl.cli.protocol_words import parse_protocols
from ray_sassl.evaluation import Evaluation, Subject, images
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.knn import WeightedKNN
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.orchestrate.batch import evaluate as evaluating
from ray_sassl.plugins import plugin_names
from ray_sassl.process.errors import UsageError
from tests.exporting.conftest import MakeRun, make_run, write_images

__all__ = ["make_run"]

FROZEN = ("knn", "linear", "few_shot", "diagnose", "robustness")


def _run(*args: str, exit_code: int = 0) -> str:
    """The command's output."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_report_writes_a_page_into_the_run_directory(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    assert f"Report: {run_dir}/report.html" in _run("report", run_dir)
    assert "Finished at step 7" in (Path(run_dir) / "report.html").read_text()
    _run("report", run_dir, "--out", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_bytes() == (Path(run_dir) / "report.html").read_bytes()


def test_frozen_protocols_read_each_data_set_once(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    decode = images.decode_images

    def counting(rows, *args):
        decoded.append(len(rows))
        return decode(rows, *args)

    monkeypatch.setattr(images, "decode_images", counting)
    run_dir = make_run("evaluate.size_px=32")
    _run("evaluate", run_dir, *FROZEN, "num_draws=2", "shots=[1]", "corruptions=[contrast]", "severities=[1]", "--no-keep-features")
    assert sum(decoded) == 60 + 42
    decoded.clear()
    _run("evaluate", run_dir, "knn")
    _run("evaluate", run_dir, "linear", "few_shot", "num_draws=2", "shots=[1]")
    assert sum(decoded) == 60 + 42  # the second command takes the features that the first has kept


def test_a_protocol_that_fails_is_named_and_the_others_continue(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    def broken(self: WeightedKNN, subject: Subject) -> Evaluation:
        raise RuntimeError("no neighbors today")

    monkeypatch.setattr(WeightedKNN, "evaluate", broken)
    run_dir = make_run()
    output = _run("evaluate", run_dir, "few_shot", "knn", "linear", "few_shot.shots=[1, 50]", exit_code=1)
    assert "few_shot failed: class 0 has 20 train images, fewer than the 50 to draw" in output
    assert "knn failed: RuntimeError: no neighbors today" in output
    assert "linear, 95 % intervals" in output
    with pytest.raises(RuntimeError, match="no neighbors today"):
        _run("evaluate", run_dir, "knn")


@pytest.mark.slow
def test_all_means_every_protocol_whose_images_are_there(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_SASSL_DATA", str(tmp_path / "nothing"))
    run_dir = make_run("evaluate.size_px=32")
    output = _run("evaluate", run_dir, "all", "few_shot.num_draws=3", "style_copies=1", "severities=[1]", "finetune.epochs=1")
    assert "all protocols, 95 % intervals" in output
    done = {file.stem for file in (Path(run_dir) / "evaluation" / "step-00000007").glob("*.json")}
    left_out = {name for name in plugin_names("ray_sassl.evaluation.protocols") if f"{name} was left out: " in output}
    assert done | left_out >= set(plugin_names("ray_sassl.evaluation.protocols"))
    assert done >= set(FROZEN)
    assert all(name in output for name in done)
    assert "detect was left out: there is no VOCdevkit" in output
    with pytest.raises(UsageError, match="leave out knn"):
        _run("evaluate", run_dir, "all", "knn")


def test_all_without_images_says_what_to_set(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_SASSL_DATA", str(tmp_path / "nothing"))
    run_dir = make_run("evaluate.train=null", "evaluate.test=null")
    with pytest.raises(UsageError, match=r"knn: evaluate\.train and evaluate\.test not set"):
        _run("evaluate", run_dir, "all")


def test_detection_settings_go_with_all_and_with_a_data_set(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_SASSL_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"detect\.steps=5 belongs to `evaluate RUN all`"):
        _run("evaluate", make_run(), "knn", "detect.steps=5")
    with pytest.raises(UsageError, match=r"detect\.steps=5 has no effect: there is no .*VOCdevkit"):
        _run("evaluate", str(tmp_path / "run"), "all", "detect.steps=5")


def test_compare_evaluates_what_is_missing_and_writes_three_files(make_run: MakeRun, tmp_path: Path):
    first, second = make_run(name="first"), make_run("backbone.name=resnet18", "backbone.stem=cifar", name="second")
    _run("evaluate", first, "knn", "k=5")
    out = tmp_path / "comparison"
    output = _run("compare", first, second, "--on", "knn k=5", "--out", str(out))
    assert "Evaluating" in output
    assert f"Evaluating {second} by knn" in output
    assert f"Evaluating {first}" not in output
    tree = json.loads((out / "comparison.json").read_text())
    assert [group["name"] for group in tree["groups"]] == ["first", "second"]
    assert {row["figure"] for row in tree["rows"]} == {"top1", "mean_per_class"}
    assert "paired over test images" in (out / "comparison.html").read_text()
    assert "# Runs compared" in (out / "comparison.md").read_text()
    again = _run("compare", first, second, "--on", "knn,linear k=5", "--out", str(out))
    assert f"Evaluating {first} by linear" in again
    assert f"Evaluating {second} by linear" in again


def test_compare_says_which_command_makes_what_is_missing(make_run: MakeRun, tmp_path: Path):
    first, second = make_run(name="first"), make_run("seed=1", name="second")
    with pytest.raises(UsageError, match=f"ray-sassl evaluate {first} all"):
        _run("compare", first, second, "--out", str(tmp_path / "comparison"))
    _run("evaluate", first, "knn", "k=5")
    output = _run("compare", first, second, "--out", str(tmp_path / "comparison"))
    assert f"second by knn: `ray-sassl evaluate {second} knn knn.k=5`" in output


def test_compare_refuses_different_test_sets(make_run: MakeRun, tmp_path: Path):
    first, second = make_run(name="first"), make_run("seed=1", name="second")
    write_images(tmp_path / "other.parquet", 30)
    _run("evaluate", first, "knn", "k=5")
    _run("evaluate", second, "knn", "k=5", f"evaluate.test={{path: {tmp_path}/other.parquet}}")
    with pytest.raises(UsageError, match=r"different test sets \(42 and 30 images\)"):
        _run("compare", first, second)


def test_changes_that_belong_to_no_missing_protocol_are_left_out(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: list[tuple] = []
    monkeypatch.setattr(evaluating, "evaluate", lambda run, protocols, *, overrides, **options: given.append((protocols, overrides)))
    monkeypatch.setattr(pages, "compare_records", lambda records, names: given.append(names))
    monkeypatch.setattr(pages, "write_comparison", lambda comparison, out: [])
    protocols, changes = parse_protocols(["knn", "linear", "linear.l2=grid", "train.epochs=3"])
    pages.compare([make_run()], str(tmp_path), protocols=protocols, overrides=changes)
    assert given == [([Knn(), Linear(l2="grid")], ["train.epochs=3"]), ["knn", "linear"]]


def test_kept_images_are_those_that_were_decoded(make_run: MakeRun):
    run_dir = make_run()
    first = json.loads(Path(_evaluated(run_dir, "one", "knn")).read_text())["scores"]["step 7"]
    both = json.loads(Path(_evaluated(run_dir, "two", "linear", "knn")).read_text())["scores"]["step 7"]
    assert np.isclose(first["top1"]["value"], both["top1"]["value"])


def _evaluated(run_dir: str, out: str, *protocols: str) -> str:
    _run("evaluate", run_dir, *protocols, "k=5", "--no-keep-features", "--out", f"{run_dir}/{out}")
    return f"{run_dir}/{out}/knn.json"
