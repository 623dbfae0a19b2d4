"""The page of one run: finished, under way, killed, on an object store."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_sassl.files import storage
from ray_sassl.runs.dose import Dose, write_doses
from ray_sassl.runs.files import METRICS, QUARANTINE, SUMMARY, VIEWS, RunDirectoryError
from ray_sassl.runs.pages.curves import Line, run_curves
from ray_sassl.runs.pages.run_page import flat, training_s, write_run_report
from ray_sassl.runs.record import read_run
from ray_sassl.train.speed import Stream, speed
from ray_sassl.views.grid import image_grid
from tests.data.test_object_store import bucket
from tests.exporting.conftest import MakeRun, make_run

__all__ = ["bucket", "make_run"]


def _page(run_dir: str) -> str:
    return storage.read_text(write_run_report(run_dir))


def _png() -> bytes:
    return image_grid([[np.zeros((8, 8, 3), np.uint8)]], ["left view"], [[""]], 16)


def _evaluated(run_dir: str) -> None:
    folder = Path(run_dir) / "evaluation" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "knn-map.png").write_bytes(_png())
    scores = {
        "step 7": {"top1": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "raw pixels": {"top1": {"value": 0.25, "low": None, "high": None}},
    }
    record = {"step": 7, "protocol": {"name": "knn"}, "chance": 0.3, "scores": scores, "files": {"map": "knn-map.png"}}
    (folder / "knn.json").write_text(json.dumps(record))


def test_the_page_of_a_finished_run_has_everything(make_run: MakeRun):
    run_dir = make_run("train.global_batch=24")
    (Path(run_dir) / VIEWS).write_bytes(_png())
    (Path(run_dir) / QUARANTINE).write_text('{"reason": "truncated: a"}\n{"reason": "truncated: b"}\n')
    write_doses(run_dir, [Dose("left", "style", 0.8, 5.125, 0.98, 0.25, 0.9)], 64)
    _evaluated(run_dir)
    page = _page(run_dir)
    assert "Finished at step 7" in page
    assert "<td>left</td><td>style</td><td>80%</td><td>5.12</td><td>0.980</td><td>25%</td><td>90%</td>" in page
    assert "5.12 gray levels, 90% of it without the partner&#x27;s style" in page
    assert "<td>50.00% <small>40.00% to 60.00%</small></td><td>25.00%</td><td>30.00%</td>" in page
    assert page.count("data:image/png;base64,") == 2
    assert '<td>truncated</td><td class="number">2</td>' in page
    assert page.count("<svg") == 1
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # nothing is fetched from elsewhere


def test_where_the_time_went_has_a_table_and_no_curves(make_run: MakeRun):
    run = read_run(make_run())
    timed = [point | {"share_step": 0.5, "busy_decode": 0.1, "rate_decode": 100.0} for point in run.metrics]
    assert run_curves([Line(replace(run, metrics=timed), "run")]) == run_curves([Line(run, "run")])
    named = [point | {"rate_of_mine": 1.0} for point in run.metrics]
    assert run_curves([Line(replace(run, metrics=named), "run")]) != run_curves([Line(run, "run")])


def test_the_page_says_where_the_time_went_and_what_would_help(make_run: MakeRun):
    run_dir = make_run()
    seconds = [{"step": 6.0, "wait": 4.0}, {"step": 9.0, "wait": 1.0}]
    found = speed(seconds, {"read": (2.0, 100), "decode": (8.0, 200)}, 100, Stream("tasks"), "take more workers")
    path = Path(run_dir) / SUMMARY
    path.write_text(json.dumps(json.loads(path.read_text()) | {"speed": found.as_dict()}))
    page = _page(run_dir)
    assert "Where the time went" in page
    assert "Training waits for the stream 25% of the time" in page
    assert '<td>0</td><td class="number">40.0%</td><td class="number">0.0%</td><td class="number">60.0%</td>' in page
    assert '<td>decode</td><td class="number">0.80</td><td class="number">25</td>' in page
    path.write_text(json.dumps(json.loads(path.read_text()) | {"speed": {"bottleneck": 3, "ranks": "x"}}))
    assert "Where the time went" not in _page(run_dir)


def test_every_top1_of_test_images_is_shown_with_chance(make_run: MakeRun):
    run_dir = make_run()
    folder = Path(run_dir) / "evaluation" / "step-00000007"
    folder.mkdir(parents=True)
    for name, chance, figures, details in (
        ("few_shot", 0.3, ("1_shot_top1", "train_top1", "shape_share"), {"1_shot": {"top1_by_draw": []}}),
        ("transfer", None, ("mine_top1",), {"mine": {"chance": 0.125}}),
    ):
        scores = {"step 7": {figure: {"value": 0.5, "low": None, "high": None} for figure in figures}}
        record = {"step": 7, "protocol": {"name": name}, "chance": chance, "scores": scores, "details": {"step 7": details}, "files": {}}
        (folder / f"{name}.json").write_text(json.dumps(record))
    page = _page(run_dir)
    for figure, chance in (("1_shot_top1", "30.00%"), ("train_top1", ""), ("shape_share", ""), ("mine_top1", "12.50%")):
        assert f"<td>{figure}</td><td>50.00%</td><td>{chance}</td>" in page


def test_what_a_score_was_measured_on_stands_beside_it(make_run: MakeRun):
    run_dir = make_run()
    folder = Path(run_dir) / "evaluation" / "step-00000007"
    folder.mkdir(parents=True)
    scores, notes = ({"step 7": {"shape_share": of}} for of in ({"value": 0.5}, "circular <b>"))
    record = {"step": 7, "protocol": {"name": "robustness"}, "scores": scores, "details": {}, "notes": notes, "files": {}}
    (folder / "robustness.json").write_text(json.dumps(record))
    assert "circular &lt;b&gt;" in _page(run_dir)


def test_what_differs_from_the_experiment_is_listed_and_nothing_else(make_run: MakeRun):
    run_dir = make_run("name=demo_plain", "train.epochs=3")
    page = _page(run_dir)
    section = page[page.index("What differs") : page.index("How good")]
    assert "<td>train.epochs</td>" in section
    assert "<td>views.size_px</td><td>32</td><td>16</td>" in section
    assert "optim.base_lr" not in section


def test_the_page_of_a_running_run_has_what_exists_so_far(make_run: MakeRun):
    run_dir = Path(make_run())
    (run_dir / SUMMARY).unlink()
    with (run_dir / METRICS).open("a") as file:
        file.write('{"step": 8, "loss": 3.1, "epoch": 0.5}\n{"step": 9, "lo')  # it is writing this very line
    page = _page(str(run_dir))
    assert "no summary yet, so it is running or was killed: step 8, epoch 0.5 of" in page.replace("No", "no", 1)
    assert "It has not been evaluated" in page


def test_a_run_that_has_logged_nothing_has_a_page_too(make_run: MakeRun):
    run_dir = Path(make_run())
    (run_dir / SUMMARY).unlink()
    (run_dir / METRICS).unlink()
    assert "Nothing was logged yet" in _page(str(run_dir))


def test_the_reason_of_a_failure_is_shown_and_escaped(make_run: MakeRun):
    run_dir = Path(make_run())
    (run_dir / SUMMARY).write_text(json.dumps({"status": "failed", "step": 3, "reason": "the loss is <nan>", "metrics": {}}))
    assert '<span class="failed">Failed at step 3: the loss is &lt;nan&gt;</span>' in _page(str(run_dir))


def test_no_run_is_an_error_that_names_the_folder(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match=r"is not a run directory: it has no config\.yaml"):
        write_run_report(str(tmp_path))


@pytest.mark.slow
def test_a_run_on_an_object_store_gets_its_page_there(make_run: MakeRun, bucket: str):
    local = Path(make_run())
    _evaluated(str(local))
    remote = storage.join(bucket, "runs", "first")
    for file in local.rglob("*"):
        if file.is_file():
            storage.write_bytes(storage.join(remote, *file.relative_to(local).parts), file.read_bytes())
    path = write_run_report(remote)
    assert path == storage.join(remote, "report.html")
    assert "Finished at step 7" in storage.read_text(path)
    assert "50.00%" in storage.read_text(path)


def test_training_time_is_that_of_the_logged_speeds(make_run: MakeRun):
    run_dir = Path(make_run("train.global_batch=20"))
    (run_dir / METRICS).write_text('{"step": 10, "images_per_s": 50}\n{"step": 30, "images_per_s": 100}\n')
    assert training_s(read_run(str(run_dir))) == pytest.approx(10 * 20 / 50 + 20 * 20 / 100)


def test_leaves_are_named_by_their_paths():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
