"""A study's record can be written, read back, continued, and read by other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from ray_sassl.config.files import read_config
from ray_sassl.experiments import load_experiment
from ray_sassl.study.record import (
    Evaluation,
    State,
    StudyConfig,
    StudyDirectoryError,
    TrialRecord,
    best_trial,
    open_study,
    pareto_front,
    read_study,
    read_trials,
    write_tables,
    write_trial,
)
from ray_sassl.study.space import Choice, Float, Interval, Objective, SearchSpace

KNN, SPEED = Objective("knn_top1", "max"), Objective("images_per_s", "max")


def make_study(**changes) -> StudyConfig:
    space = SearchSpace(
        parameters=(
            Float(path="sassl.prob", low=0, high=1),
            Interval(path="sassl.alpha", low=(0, 0.7), width=(0, 0.3)),
            Choice(path="stylize", choices=("identity", "color_statistics")),
        )
    )
    fields = {"objectives": ("knn_top1",), "searcher": "optuna", "scheduler": "asha", "num_trials": 4, "seed": 0} | changes
    return StudyConfig(name="small", base=load_experiment("demo"), space=space, **fields)


def make_trial(number: int, values: list[float], state: State = "finished", speed: float = 100.0) -> TrialRecord:
    point = {"sassl.prob": 0.1 * number, "sassl.alpha.low": 0.1, "sassl.alpha.width": 0.2, "stylize": "color_statistics"}
    metrics = [{"knn_top1": value, "images_per_s": speed, "step": 10.0 * n, "epoch": float(n)} for n, value in enumerate(values, 1)]
    curve = [Evaluation(n, metric, 5.0 * n) for n, metric in enumerate(metrics, 1)]
    return TrialRecord(number, dict(point), state, curve, attempts=1, wall_s=5.0 * len(values))


def test_a_study_whose_first_trials_were_scored_on_test_images_goes_on_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    open_study(make_study(), str(tmp_path), resume=False)
    write_trial(str(tmp_path), make_trial(0, [0.1]))
    open_study(make_study(), str(tmp_path), resume=True)
    assert not caplog.text
    text = (tmp_path / "study.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith(("validation", "final_test"))]
    assert len(lines) == len(text.splitlines()) - 3
    (tmp_path / "study.yaml").write_text("\n".join(lines))
    assert len(open_study(make_study(), str(tmp_path), resume=True)) == 1
    assert "were scored on evaluate.test by an older version" in caplog.text


def test_trials_and_study_read_back_as_they_were_written(tmp_path: Path):
    study, trials = make_study(), [make_trial(0, [0.1, 0.3]), make_trial(1, [0.2], "stopped"), TrialRecord(2, {"sassl.prob": 0.5})]
    assert open_study(study, str(tmp_path), resume=False) == []
    for trial in trials:
        write_trial(str(tmp_path), trial)
    assert read_study(str(tmp_path)) == study
    assert read_trials(str(tmp_path)) == trials
    assert open_study(study, str(tmp_path), resume=True) == trials


def test_a_study_is_not_started_twice_and_another_one_is_not_resumed(tmp_path: Path):
    with pytest.raises(StudyDirectoryError, match="contains no study to resume"):
        open_study(make_study(), str(tmp_path), resume=True)
    open_study(make_study(), str(tmp_path), resume=False)
    with pytest.raises(StudyDirectoryError, match="already contains a study; add --resume"):
        open_study(make_study(), str(tmp_path), resume=False)
    with pytest.raises(StudyDirectoryError, match="has another seed"):
        open_study(make_study(seed=1), str(tmp_path), resume=True)
    open_study(make_study(num_trials=9), str(tmp_path), resume=True)
    assert read_study(str(tmp_path)).num_trials == 9


def test_tables_hold_parameters_curve_cost_and_outcome(tmp_path: Path):
    trials = [make_trial(0, [0.1, 0.3]), make_trial(1, [0.2], "stopped"), TrialRecord(2, {"sassl.prob": 1}, "failed", reason="diverged")]
    write_tables(make_study(), str(tmp_path), trials)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["finished", "stopped", "failed"]
    assert [row["knn_top1"] for row in rows] == [0.3, 0.2, None]
    assert rows[2]["reason"] == "diverged"
    assert rows[0]["wall_s"] == 10.0
    assert [point["knn_top1"] for point in rows[0]["curve"]] == [0.1, 0.3]
    assert rows[0]["point.stylize"] == "color_statistics"
    assert pacsv.read_csv(tmp_path / "trials.csv")["point.sassl.prob"].to_pylist() == [0.0, 0.1, 1.0]


def test_the_best_trial_is_an_experiment_that_reads_back(tmp_path: Path):
    write_tables(make_study(), str(tmp_path), [make_trial(0, [0.3]), make_trial(4, [0.1, 0.4])])
    best = read_config(str(tmp_path / "best.yaml"))
    assert best.name == "small_best"
    assert best.sassl.prob == pytest.approx(0.4)
    assert best.sassl.alpha == pytest.approx((0.1, 0.3))


def test_a_trial_that_ran_to_its_end_is_better_than_one_that_was_stopped():
    finished, stopped, failed = make_trial(0, [0.3]), make_trial(1, [0.5], "stopped"), make_trial(2, [0.9], "failed")
    assert best_trial([finished, stopped, failed], KNN) is finished
    assert best_trial([stopped, failed], KNN) is stopped
    assert best_trial([], KNN) is None
    assert best_trial([make_trial(0, [0.3]), make_trial(1, [0.2])], Objective("knn_top1", "min")).number == 1  # type: ignore[union-attr]


def test_the_front_is_what_nothing_else_beats():
    good, fast, both_worse = make_trial(0, [0.5], speed=50), make_trial(1, [0.3], speed=100), make_trial(2, [0.2], speed=60)
    assert pareto_front([good, fast, both_worse], [KNN, SPEED]) == [good, fast]


def test_a_failed_trial_teaches_the_searcher_nothing_and_an_interrupted_one_is_still_running():
    assert make_trial(0, [0.1], "failed").known([KNN]) is None
    interrupted = make_trial(0, [0.1, float("nan")], "interrupted").known([KNN])
    assert interrupted is not None
    assert (interrupted.state, interrupted.values, interrupted.curve) == ("running", (0.1,), {1: 0.1})


def test_no_text_of_the_table_for_spreadsheets_is_a_formula(tmp_path: Path):
    trial = make_trial(0, [0.3])
    trial.reason = "=HYPERLINK(A1)"
    lower = make_trial(1, [-0.5])
    lower.reason = "-1"
    lower.point["stylize"] = "@sum"
    curve = [Evaluation(1, {"knn_top1": -0.5, "-x": 1.0}, 1.0)]
    study = make_study(objectives=("knn_top1", "-x"))
    write_tables(study, str(tmp_path), [trial, dataclasses.replace(lower, curve=curve)])
    table = pacsv.read_csv(tmp_path / "trials.csv", convert_options=pacsv.ConvertOptions(column_types={"reason": "string"}))
    assert table["reason"].to_pylist() == ["'=HYPERLINK(A1)", "-1"]
    assert table["point.stylize"].to_pylist() == ["color_statistics", "'@sum"]
    assert table["knn_top1"].to_pylist() == [0.3, -0.5]
    assert table["'-x"].to_pylist() == [None, 1.0]
    assert pq.read_table(tmp_path / "trials.parquet")["reason"].to_pylist() == ["=HYPERLINK(A1)", "-1"]
