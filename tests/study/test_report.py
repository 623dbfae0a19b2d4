"""A report is one file that needs nothing else, at any time of a study."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ray_sassl.runs.dose import Dose, write_doses
from ray_sassl.study.record import TrialRecord, open_study, read_record, write_trial
from ray_sassl.study.report import write_report
from tests.study.test_record import make_study, make_trial


def _study_dir(folder: Path, trials: list[TrialRecord]) -> str:
    open_study(make_study(), str(folder), resume=False)
    for trial in trials:
        write_trial(str(folder), trial)
    return str(folder)


def test_a_report_of_a_study_that_has_only_begun_says_so(tmp_path: Path):
    assert "0 of 4 trials: none yet" in Path(write_report(read_record(_study_dir(tmp_path / "empty", [])))).read_text()
    running = Path(write_report(read_record(_study_dir(tmp_path / "running", [TrialRecord(0, {"sassl.prob": 0.5})])))).read_text()
    assert "1 of 4 trials" in running
    assert "1 running" in running


def test_a_report_needs_nothing_from_elsewhere_and_shows_fates_with_their_reasons(tmp_path: Path):
    trials = [make_trial(number, [0.1, 0.2 + 0.01 * number]) for number in range(4)]
    trials += [
        make_trial(4, [0.05], "stopped"),
        TrialRecord(5, {"sassl.prob": 0.5}, "failed", reason="the loss is nan & <more>", attempts=2),
    ]
    study_dir = _study_dir(tmp_path, trials)
    buffer = io.BytesIO()
    Image.new("RGB", (400, 320), (200, 30, 30)).save(buffer, "PNG")
    for number in (3, 1):  # the best and the median
        (tmp_path / "trials" / f"{number:04d}" / "views.png").write_bytes(buffer.getvalue())
    text = Path(write_report(read_record(study_dir))).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert "url(http" not in text
    assert "the loss is nan &amp; &lt;more&gt; (2 attempts)" in text
    for title in (
        "Best trials",
        "Learning curves",
        "Importance of the parameters",
        "Accuracy against cost",
        "The best trial as an experiment",
    ):
        assert f"<h2>{title}</h2>" in text
    assert "The best trial: 3, knn_top1 23.00%" in text
    assert "The median trial at evaluation 2: 1, knn_top1 21.00%" in text
    assert text.count("data:image/png;base64,") == 2
    assert "at most 10,000 validation images, so each has a standard error of at least 0.41%" in text  # of a share of 0.215
    # What differs from the base experiment is there to be copied.
    assert "sassl.prob=0.3" in text


def test_a_report_says_how_strong_the_augmentations_of_the_best_trial_are(tmp_path: Path):
    study_dir = _study_dir(tmp_path, [make_trial(0, [0.1, 0.3])])
    buffer = io.BytesIO()
    Image.new("RGB", (400, 320)).save(buffer, "PNG")
    (tmp_path / "trials" / "0000" / "views.png").write_bytes(buffer.getvalue())
    write_doses(str(tmp_path / "trials" / "0000"), [Dose("left", "style", 0.8, 5.125, 0.98, 0.25, 0.9)], 64)
    page = Path(write_report(read_record(study_dir))).read_text()
    assert "How strong the augmentations are" in page
    assert "<td>style</td><td>80%</td><td>5.12</td>" in page
    (tmp_path / "trials" / "0000" / "dose.json").write_text("[1")
    assert "dose.json" in Path(write_report(read_record(study_dir))).read_text()  # among what was left out
