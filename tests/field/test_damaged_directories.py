"""Run and study directories with damaged and foreign files: pages of what is whole, and sentences."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.pages import curves
from ray_sassl.runs.pages.markup import element
from ray_sassl.study import figures
from ray_sassl.study.record import read_trials
from tests.exporting.conftest import MakeRun, make_run
from tests.field.damage import damaged
from tests.field.hostile import edit_trial, make_hostile_study, png

__all__ = ["make_run"]


def _run(make: MakeRun, name: str, *overrides: str) -> Path:
    """A run that was evaluated."""
    run = Path(make(*overrides, name=name))
    ray_sassl.evaluate(str(run), ["knn"], keep_features=False)
    (run / "views.png").write_bytes(png())
    (run / "quarantine.jsonl").write_text('{"path": "a.tar", "row": 1, "sample_id": 1, "reason": "cut: short"}\n')
    return run


def _try(folder: Path, work: Callable[[], object], rounds: int) -> int:
    """Damages one file of the directory, again and again; returns how often the work was done, and not refused with a sentence."""
    suffixes = (".json", ".jsonl", ".yaml", ".png", ".parquet")
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and "checkpoints" not in path.parts)
    done = 0
    for number in range(rounds):
        rng = random.Random(number)
        path = rng.choice(files)
        before = path.read_bytes()
        path.write_bytes(damaged(before, path.name, rng))
        try:
            work()
            done += 1
        except UsageError:
            continue
        except Exception as error:
            raise AssertionError(f"round {number}, {path.relative_to(folder)}") from error
        finally:
            path.write_bytes(before)
    return done


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in another test; a second each."""
    for module in (curves, figures):
        monkeypatch.setattr(module, "svg", lambda figure: element("<svg></svg>"))


def test_a_damaged_file_of_a_run_is_left_out_or_a_sentence(make_run: MakeRun, without_figures: None, tmp_path: Path):
    first, second = _run(make_run, "first"), _run(make_run, "second", "seed=1")
    assert _try(first, lambda: ray_sassl.report(str(first)), 30) > 20
    assert _try(first, lambda: ray_sassl.compare([str(first), str(second)], str(tmp_path / "comparison")), 15) > 5


def test_a_damaged_file_of_a_study_is_left_out_or_a_sentence(without_figures: None, tmp_path: Path):
    study = Path(make_hostile_study(tmp_path / "study", "plain", 4))
    assert _try(study, lambda: ray_sassl.report_study(str(study)), 10) > 5
    other = make_hostile_study(tmp_path / "other", "plain", 2)
    assert _try(study, lambda: ray_sassl.compare_studies(str(study), other, None), 6) > 3


def test_a_config_that_is_damaged_is_a_sentence_for_views(make_run: MakeRun, tmp_path: Path):
    run = _run(make_run, "run")
    for name in ("evaluation", "metrics.jsonl", "summary.json", "quarantine.jsonl", "environment.json", "views.png"):
        (run / name).rename(tmp_path / f"kept-{name}")
    assert _try(run, lambda: ray_sassl.draw_views(str(run), str(tmp_path / "views.png")), 12) < 12


def test_whole_lines_are_drawn_and_the_others_counted(make_run: MakeRun):
    run = Path(make_run())
    lines = [
        *(b"3", b'{"loss": 3.0}', b'{"step": "1", "loss": 3.0}', b'{"step": true}', b'{"step": NaN}', b"\xff\xfe", b'{"step": 1, "lo'),
        *(b"[" * 10_000, b'{"step": 1' + b"0" * 400 + b"}"),
        b'{"step": 1, "loss": 4.0, "$\\\\frac{$": 0.5, "big": 1e308, "word": "x", "none": null, "huge": 1' + b"0" * 400 + b"}",
        b'{"step": 2, "loss": NaN, "$\\\\frac{$": 0.25, "epoch": "x"}',
    ]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (run / "quarantine.jsonl").write_bytes(
        b'{"path": "a", "row": 1, "sample_id": 1, "reason": "cut: a"}\n{"path": "a", "row": 1, "sample\n'
    )
    (run / "summary.json").unlink()
    page = Path(ray_sassl.report(str(run))).read_text()
    assert "9 of 11 lines of" in page
    assert "1 of 2 lines of" in page
    assert "running or was killed: step 2" in page
    assert page.count("<svg") == 1
    assert len(re.findall(r"<!-- \$\\frac\{\$ -->", page)) == 1  # the name as it is, in a comment of matplotlib's


def test_a_trial_record_of_another_shape_is_named_and_a_study_is_not_continued_without_it(tmp_path: Path):
    study = Path(make_hostile_study(tmp_path / "study", "plain", 6))
    edit_trial(study, 0, curve=[{"number": 1, "metrics": {"knn_top1": 1e300}, "wall_s": 1.0}])
    edit_trial(study, 1, number=4)
    edit_trial(study, 2, point={"sassl.prob": "much"})
    edit_trial(study, 3, wall_s=None)
    (study / "trials" / "0004" / "trial.json").write_bytes(b"[" * 100_000)
    result = ray_sassl.report_study(str(study))
    page = Path(result.report).read_text()
    assert [trial.number for trial in result.trials] == [5, 6]
    assert page.count("; the trial is left out") == 5
    for word in (
        "numbers beyond 1e+100",
        "the record of another trial: 4",
        "sassl.prob is much",
        "not the record of a trial: wall_s",
        "is damaged",
    ):
        assert word in page
    with pytest.raises(UsageError, match=r"remove the trial's folder, and the trial is done again"):
        read_trials(str(study))
    assert json.loads((study / "trials" / "0005" / "trial.json").read_text())["number"] == 5
