"""What the commands import before they work: torch and Ray take seconds, which nobody wants to wait for to read a help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ray_sassl.config.files import to_yaml
from ray_sassl.experiments import experiments, load_experiment, summaries

HEAVY = ("torch", "ray", "torchvision", "timm", "scipy", "sklearn", "matplotlib", "pyarrow", "pandas", "optuna")

_RUN = f"""
import json, sys
from ray_sassl.cli import main
sys.argv = ["ray-sassl", *json.loads(sys.argv[1])]
try:
    main()
finally:
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""


def _imported(*words: str) -> tuple[list[str], str]:
    """Which of the heavy packages a command has imported at its end, and what it printed."""
    done = subprocess.run([sys.executable, "-c", _RUN, json.dumps(words)], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("words", [["--help"], ["experiments"], ["version"], ["pretrain", "--help"], ["data", "convert", "--help"]])
def test_help_and_lists_import_nothing_heavy(words):
    imported, printed = _imported(*words)
    assert imported == []
    assert printed


def test_drawing_views_imports_neither_ray_nor_what_only_evaluations_need(tmp_path: Path):
    for number in range(3):
        Image.new("RGB", (20, 20), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    imported, _ = _imported("views", "demo", f"data.path={tmp_path}", "--out", str(tmp_path / "out.jpg"), "--rows", "1")
    assert (tmp_path / "out.jpg").exists()
    assert set(imported) <= {"torch", "pyarrow", "pandas"}  # pyarrow imports pandas itself


def test_reporting_on_a_run_imports_neither_ray_nor_torch(tmp_path: Path):
    config = load_experiment("demo")
    (tmp_path / "config.yaml").write_text(to_yaml(config.model_copy(update={"seed": 5})))
    (tmp_path / "environment.json").write_text(json.dumps({"experiment": config.model_dump(mode="json")}))
    imported, _ = _imported("report", str(tmp_path))
    assert re.search(r"<td>seed</td>.*>0<.*>5<", (tmp_path / "report.html").read_text())
    assert set(imported) <= {"pyarrow", "matplotlib"}


def test_comparing_runs_imports_neither_ray_nor_torch(tmp_path: Path):
    for run in ("one", "other"):
        (tmp_path / run / "evaluation/step-00000001").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text(to_yaml(load_experiment("demo")))
        (tmp_path / run / "evaluation/step-00000001/knn.json").write_text('{"protocol": "knn", "scores": {"top1": 0.5}}')
    imported, _ = _imported("compare", str(tmp_path / "one"), str(tmp_path / "other"), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out/comparison.html").exists()
    assert set(imported) <= {"pyarrow", "matplotlib"}


def test_the_summaries_are_those_of_the_experiments_in_their_order():
    expected = {name: (function.__doc__ or "").partition("\n")[0] for name, function in experiments().items()}
    assert list(summaries().items()) == list(expected.items())
