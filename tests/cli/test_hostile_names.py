"""Every verb with a name that a terminal would obey, that rich would read as markup, or that is not UTF-8, wherever a name can stand."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import ray_sassl
from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import Evaluation, Score
from ray_sassl.process.errors import UsageError
from ray_sassl.types import RunResult
from tests.cli.in_process import call_main
from tests.cli.test_verbs import VERBS
from tests.exporting.conftest import MakeRun, make_run
from tests.field.hostile import make_hostile_study, retell

__all__ = ["make_run"]

OBEYED = "[red]\x1b]0;owned\x07\x9b2J\u202e猫é:warning:"
NOT_UTF8 = "caf\udce9"
MARKUP = "[/x] [bold"
"""A folder's name cannot hold it."""


@pytest.fixture(params=[(OBEYED, "ascii"), (OBEYED, "utf-8"), (NOT_UTF8, "ascii")], ids=["obeyed-ascii", "obeyed-utf8", "not-utf8-ascii"])
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A name and the encoding of the terminal."""
    return request.param


Run = Callable[..., str]


@pytest.fixture
def sassl(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Calls the command line in this process and returns what it printed, which has nothing in it that a terminal obeys."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: str) -> str:
        code, output = call_main(words, monkeypatch, case[1])
        assert code in (0, 1, 2, 130)
        assert not set("\x1b\x07\x9b\u202e\r") & set(output), output
        return output

    return run


@pytest.fixture
def without_ray(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs Ray answers at once, with the name and with markup in every text."""
    text = case[0] + MARKUP
    bad = {"bad_rows": [BadRow(text, 3, 3, text), BadRow(text, -1, -1, text)]}
    job = SimpleNamespace(
        id=text, name=text, status="failed", command=text, target=text, started=1.0, ended=2.0, message=text, exit_code=1, has_ended=True
    )
    result = RunResult("interrupted", 3, text, text, {}, reason=text)
    copied = SimpleNamespace(num_rows=5, num_shards=2, num_written=1, notes=[text], **bad)
    embedded = {"out": text, "num_rows": 1, "num_features": 2, "num_parts": 1, "num_made": 1, "num_made_rows": 1, "seconds": 1.0}
    answers = {
        "pretrain": result,
        "run_demo": SimpleNamespace(scores={text: (0.1, 0.2)}, chance=0.1, runs=[result]),
        "check_data": SimpleNamespace(num_rows=5, overlap=None, mixing=None, large_groups=text, **bad),
        "convert_data": copied,
        "stylize_dataset": copied,
        "build_style_bank": SimpleNamespace(num_styles=3, bundle_id=text, notes=[text], **bad),
        "distill_stylizer": SimpleNamespace(steps=3, code_space=text, **bad),
        "embed": SimpleNamespace(bad_rows_path=text, **embedded, **bad),
        "list_jobs": [job],
        "job_status": job,
        "job_logs": (f"\x1b[31m{text}\x1b[0m\r\n", job),
        "stop_job": (True, job),
        "wait_for_job": job,
        "submit_job": SimpleNamespace(job=job, notes=[text], left_here=(text,), num_files=1, num_bytes=1),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(ray_sassl, name, lambda *_, answer=answer, **__: answer, raising=False)


def _jobs(name: str) -> dict[str, list[str]]:
    """Commands whose work the tests do not do, by their verbs."""
    return {
        "demo": ["--run-dir", name],
        "pretrain": ["demo_plain", f"name={json.dumps('x' + MARKUP)}", "sassl.alpha=[0.1, 0.2]", "--run-dir", name],
        "data check": [name, "--out", name],
        "data convert": [name, name, "--format", "parquet"],
        "stylize bank": [name, "stylize=color_statistics", "--out", name],
        "stylize dataset": [name, name, "stylize=color_statistics"],
        "stylize distill": [name, "--styles", name, "--out", name],
        "embed": [name, name, "--out", name],
        "job list": ["--address", name],
        "job status": [name],
        "job logs": [name],
        "job stop": [name],
        "job wait": [name],
        "job submit": ["--name", name, "--", "pretrain", name],
    }


def _shown(case: tuple[str, str]) -> str:
    """A part of the name as it has to be printed."""
    return (
        r"caf\xe9"
        if case[0] == NOT_UTF8
        else r"[red]\x1b]0;owned\x07\x9b2J\u202e" + (r"\u732b\xe9" if case[1] == "ascii" else "猫é") + ":warning:"
    )


def _with_bells(output: str) -> str:
    """The output with the bells that rich leaves out of its texts."""
    return output.replace(r"owned\x9b", r"owned\x07\x9b")


@pytest.mark.parametrize("verb", sorted(_jobs("")))
def test_what_a_job_of_the_cluster_says_is_shown_as_it_is(verb: str, case: tuple[str, str], sassl: Run, without_ray: None):
    output = sassl(*verb.split(), *_jobs(case[0])[verb])
    if case[0] == OBEYED:
        assert _shown(case) in _with_bells(output)
        assert "[/x]" in output or "x[/x" in output


def _wrong(name: str) -> dict[str, list[list[str]]]:
    """Commands that cannot be carried out, with the name in every place, by their verbs."""
    return {
        "experiments": [[name]],
        "pretrain": [
            [name],
            ["demo", f"data.path={name}", "--dry-run"],
            ["demo", f"{name}=1"],
            ["demo", f"train.{name}=1"],
            ["demo", name],
        ],
        "views": [[name], ["demo", f"data.path={name}"], ["demo", f"method={name}"], ["demo", "--out", f"{name}/{name}/"]],
        "evaluate": [[name, name], [name, "knn"], [name, "knn", f"{name}=1"], [name, f"knn.{name}=1"]],
        "detect": [[name, name], [name, name, f"{name}=1"]],
        "search run": [
            [name],
            [f"{name}.yaml"],
            ["style_strength", "--experiment", name],
            ["style_strength", f"--objective={name}:{name}"],
        ],
        "ablation run": [
            [name],
            [f"{name}.py"],
            ["sassl_view", "--experiment", name],
            ["sassl_view", f"{name}=1"],
            ["sassl_view", "--on", name],
            ["sassl_view", f"data.path={name}", "--study-dir", f"{name}-study"],
        ],
        "ablation list": [[name]],
        "search report": [[name]],
        "search compare": [[name, name]],
        "report": [[name]],
        "compare": [[name, name], [name, name, "--on", name], [name, name, "--on", f"knn {name}=1"]],
        "data inspect": [[name], [name, "--image-column", name]],
        "data mixing": [[name]],
        "data cards": [[name], ["--root", name]],
        "data fetch": [[name], ["flowers102", "--from", name, "--out", name]],
        "cluster check": [[name], [name, "--crds", name]],
        "cluster plan": [[name], ["demo", "--measured", name], ["demo", "--prices", name], ["demo", "--deadline", name]],
        "job submit": [["--", name], ["--", "pretrain", name, "--run-dir", name], ["--env", name, "--", "demo"]],
        "stylize preview": [[name, "--styles", name], [name, "--styles", name, name]],
        "weights fetch": [[name]],
        "weights add": [[name]],
        "weights path": [[name]],
        "weights verify": [[name]],
        "export": [[name], [name, f"{name}=1"]],
        "embed": [[name, "--out", name, "x", name]],
        "version": [[name]],
        "weights list": [[name]],
        "search spaces": [[name]],
    }


@pytest.mark.parametrize("verb", sorted(_wrong("")))
def test_a_verb_that_fails_on_a_hostile_name_prints_a_message(verb: str, case: tuple[str, str], sassl: Run):
    for words in _wrong(case[0])[verb]:
        output = sassl(*verb.split(), *words)
        assert output


def test_no_verb_is_left_out():
    assert _jobs("").keys() | _wrong("").keys() == VERBS.keys()


def _photos(folder: Path, name: str) -> Path:
    """Two classes of images, whose names and whose files' names hold the name."""
    for number, label in enumerate((name, f"other {name}")):
        (folder / label).mkdir(parents=True)
        for row in range(3):
            Image.new("RGB", (40, 40), (90 * number, 40 * row, 9)).save(folder / label / f"{name}{row}.png")
        (folder / label / f"{name}.jpg").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("case", [(OBEYED, "ascii"), (NOT_UTF8, "ascii")], ids=["obeyed", "not-utf8"], indirect=True)
def test_data_and_runs_and_studies_with_such_names_are_shown(case: tuple[str, str], sassl: Run, make_run: MakeRun, tmp_path: Path):
    name, shown = case[0], _shown(case)
    output = sassl("data", "inspect", str(_photos(tmp_path / "photos", name)))
    if name == NOT_UTF8:
        assert "2 names that are not UTF-8" in output
        return
    assert shown in _with_bells(output)
    photos = f"data.path={tmp_path}/photos"
    assert "Views: " in sassl("views", "demo_plain", photos, "views.size_px=16", "--out", f"{name}.png")
    run = Path(make_run(name="plain")).rename(tmp_path / name)
    assert shown in sassl("report", str(run))
    assert f"{shown}/report.html" in sassl("report", str(run))
    assert shown in sassl("evaluate", str(run), "knn", "k=3")
    assert shown in sassl("compare", str(run), make_run("seed=1", name="second"), "--out", name)
    assert shown in sassl("export", str(run), "--out", name)
    retell(run, name + MARKUP)
    (run / "metrics.jsonl").write_text("3\n")
    assert f"1 of 1 lines of {tmp_path}" in sassl("report", str(run))
    study = make_hostile_study(tmp_path / "studies" / name, name + MARKUP, 2)
    assert shown in sassl("search", "report", study)
    assert shown in sassl("search", "compare", study, study, "--out", name + ".html")
    (tmp_path / f"{name}.yaml").write_text(f"name: {json.dumps(name + MARKUP)}\nmethod: {json.dumps(name)}\n{json.dumps(name)}: 1\n")
    assert shown in sassl("views", f"{name}.yaml")
    assert shown in sassl("cluster", "check", f"{name}.yaml")


def test_progress_and_failures_of_an_evaluation_are_shown_as_they_are(case: tuple[str, str], sassl: Run, monkeypatch: pytest.MonkeyPatch):
    from ray_sassl.evaluation.run import Failed, Finished, Started

    text = case[0] + MARKUP
    found = {text: Evaluation({text: Score(0.5, 0.4, 0.6).as_share(0.1)}, notes={text: text})}

    def evaluate(*_: Any, watch: Callable[[Any], None], **__: Any) -> SimpleNamespace:
        watch(Started(text, text))
        watch(Finished(text, found, text))
        watch(Failed(text, UsageError(text)))
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            watch(Failed(text, error))
        return SimpleNamespace(evaluations={text: found}, skipped={text: text}, failures={text: text}, num_bad=3)

    monkeypatch.setattr(ray_sassl, "evaluate", evaluate, raising=False)
    output = sassl("evaluate", text, "all")
    assert output.count("[/x] [bold") >= 8


def test_an_error_of_ours_and_a_warning_show_names_as_they_are(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=case[1])
    monkeypatch.setattr(sys, "stderr", stream)
    from ray_sassl.cli import _show_traceback

    try:
        raise RuntimeError(case[0] + MARKUP)
    except RuntimeError as error:
        _show_traceback(RuntimeError, error, error.__traceback__)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    output = stream.buffer.getvalue().decode(case[1])
    assert MARKUP in output
    assert not set("\x1b\x07\x9b\u202e") & set(output)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = logging.getLogger("ray_sassl.evaluation").level
    yield
    logging.getLogger("ray_sassl.evaluation").setLevel(level)
