"""What `ray-sassl search` makes of its options, shows while it runs, and draws afterward; whole studies are in tests/orchestrate."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ray_sassl.api.search import make_study, with_doses
from ray_sassl.cli import app
from ray_sassl.cli.search import remaining_s, status
from ray_sassl.process.errors import UsageError
from ray_sassl.study.record import StudyConfig, TrialRecord, open_study, write_trial
from ray_sassl.study.space import Dose
from tests.study.test_record import make_study as small_study
from tests.study.test_record import make_trial
from tune_spaces import spaces


def _study(space: str, *overrides: str, experiment: str | None = None, **given: Any) -> StudyConfig:
    return make_study(space, experiment=experiment, overrides=overrides, **given)


def _run(*args: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["search", *args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _written(folder: Path, **changes: Any) -> str:
    open_study(small_study(**changes), str(folder), resume=False)
    for number in range(5):
        write_trial(str(folder), make_trial(number, [0.1, 0.2 + 0.01 * number]))
    write_trial(str(folder), TrialRecord(5, {"sassl.prob": 0.5}, "failed", reason="the loss is nan"))
    return str(folder)


def test_what_the_user_does_not_say_is_the_spaces_choice():
    study = _study("style_strength")
    assert (study.searcher, study.scheduler, study.num_trials, study.objectives) == ("optuna", "asha", 20, ("knn_top1",))
    assert study.space.grace == 1
    study = _study("style_strength", searcher="random", scheduler="median", objectives=("loss", "images_per_s"), trials=3, grace=2)
    assert (study.searcher, study.scheduler, study.num_trials, study.objectives) == ("random", "median", 3, ("loss", "images_per_s"))
    assert study.space.grace == 2


def test_overrides_change_the_base_experiment_and_fix_what_they_set():
    study = _study("style_strength", "sassl.prob=0.5", "train.epochs=3", experiment="simclr_cifar10_cpu_sassl")
    assert (study.base.method.name, study.base.sassl.prob, study.base.train.epochs) == ("simclr", 0.5, 3)
    names = {dimension.name for dimension in study.space.dimensions}
    assert "sassl.prob" not in names
    assert "sassl.alpha.low" in names


def test_doses_are_measured_once_on_the_studys_images_and_recorded(tmp_path: Path):
    study = _study("style_dose", "data.block_rows=16", experiment="demo")
    measured = with_doses(study, None)
    (dose,) = (p for p in measured.space.parameters if isinstance(p, Dose))
    assert set(dose.curves) == {"color_statistics", "fda", "swift"}
    assert all(curve[0] == (0, 0) and curve[-1][1] > 30 for curve in dose.curves.values())
    assert dose.curves["swift"] != dose.curves["fda"]
    measured.space.check(measured.base)
    open_study(measured, str(tmp_path), resume=False)
    moved = _study("style_dose", "data.block_rows=16", "data.path=nowhere", experiment="demo")
    assert with_doses(moved, str(tmp_path)).space == measured.space  # the images are not looked at again
    assert with_doses(_study("views"), None) == _study("views")


def test_a_grid_has_as_many_trials_as_points():
    fixed = ("sassl.alpha=[0.1, 0.3]", "sassl.beta=[0.1, 0.3]", "sassl.style_source=in_batch")
    assert _study("style_strength", *fixed, searcher="grid").num_trials == 3 * 3 * 2
    assert _study("style_strength", *fixed, searcher="grid", trials=5).num_trials == 5


def test_the_linear_probe_is_measured_if_it_is_an_objective():
    assert _study("style_strength").base.evaluate.online == "knn"
    assert _study("style_strength", objectives=("linear_top1",)).base.evaluate.online == "linear"
    assert _study("style_strength", objectives=("knn_top1", "linear_top1")).base.evaluate.online == "both"


def test_an_objective_stands_once():
    with pytest.raises(UsageError, match="each metric may be given once"):
        _study("style_strength", objectives=("loss", "loss:min"))


def test_the_live_table_shows_trials_the_best_so_far_and_the_time_to_go():
    trials = [make_trial(0, [0.1, 0.3]), make_trial(1, [0.2], "stopped"), TrialRecord(2, {"sassl.prob": 0.5}, wall_s=1.0, attempts=2)]
    state: Any = SimpleNamespace(
        study=small_study(num_trials=5), records=trials, progress={2: {"epoch": 0.25}}, concurrent=1, began=0.0, waiting="1 x 2 CPU"
    )
    # Two trials took 10 s and 5 s, one is a second into its 7.5 s, two more wait.
    assert remaining_s(state) == pytest.approx(7.5 - 1 + 2 * 7.5)
    out = io.StringIO()
    Console(file=out, width=200).print(status(state))
    text = out.getvalue()
    assert "2 of 5 trials ended, 1 running" in text
    assert "about 0:22 to go" in text
    assert "best so far: trial 0, knn_top1 30.00%" in text
    assert "0.25" in text
    assert "running (2. attempt)" in text
    assert "waiting: 1 x 2 CPU" in text
    state.records = []
    assert remaining_s(state) is None


def test_spaces_are_listed():
    listed = _run("spaces")
    assert all(name in listed for name in spaces())


def test_a_report_is_drawn_from_the_record(tmp_path: Path):
    study_dir = _written(tmp_path / "study")
    output = _run("report", study_dir)
    assert "5 finished, 1 failed" in output
    assert "failed: the loss is nan" in output
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"report.html", "trials.parquet", "trials.csv", "best.yaml"} <= names


def test_two_studies_are_compared(tmp_path: Path):
    out = tmp_path / "compare.html"
    output = _run("compare", _written(tmp_path / "a"), _written(tmp_path / "b", scheduler="fifo"), "--out", str(out))
    assert "optuna, fifo" in output
    assert out.read_text().startswith("<!doctype html>")


def test_a_folder_without_a_study_and_an_unknown_space_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="contains no study"):
        _run("report", str(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'style_strength'"):
        _run("style_strenght")
