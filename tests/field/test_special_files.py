"""Pipes, sockets, devices, links to nothing and files without content where a file is expected: an answer at once, and in a sentence."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from ray_sassl.cluster.crds import read_schemas
from ray_sassl.evaluation.feature_files import read_features
from ray_sassl.process.errors import UsageError
from tests.cli.in_process import call_main
from tests.exporting.conftest import MakeRun, make_run

__all__ = ["make_run"]

_KINDS = ("pipe", "link to a pipe", "socket", "device", "nothing", "empty")
_PLACES = {
    "a config": ["views", "FILE.yaml", "--out", "OUT/v.png"],
    "an image": ["data", "inspect", "FILE.jpg", "--out", "OUT/s.png"],
    "a tar shard": ["data", "inspect", "FILE.tar", "--out", "OUT/s.png"],
    "Parquet": ["data", "inspect", "FILE.parquet", "--out", "OUT/s.png"],
    "a teacher": ["pretrain", "demo_plain", "method={name: distill, teacher: 'FILE.pt'}", "scaling.num_workers=0", "--run-dir", "OUT/run"],
    "weights": ["pretrain", "demo_plain", "backbone.weights=FILE.safetensors", "scaling.num_workers=0", "--run-dir", "OUT/run"],
    "a bank": ["pretrain", "demo", "stylize=color_statistics", "sassl={style_source: bank, bank: 'FILE.safetensors'}",
               "scaling.num_workers=0", "--run-dir", "OUT/run"],
    "a space in YAML": ["search", "run", "FILE.yaml", "--study-dir", "OUT/study"],
    "a space in Python": ["search", "run", "FILE.py", "--study-dir", "OUT/study"],
    "an ablation": ["ablation", "FILE.py", "--study-dir", "OUT/study"],
    "an encoder": ["embed", "FILE.pt", "DATA", "--out", "OUT/f.parquet"],
    "a run": ["report", "FILE", "--out", "OUT/r.html"],
    "published weights": ["weights", "add", "FILE.safetensors"],
    "a cluster": ["cluster", "check", "FILE.yaml"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """What waits for a pipe is ended by an error."""

    def over(number: int, frame: FrameType | None) -> None:
        raise AssertionError("no answer within two minutes")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _put(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe"))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as patch:
            patch.chdir(path.parent)  # the path of a socket must be short
            one.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "nothing":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("place", _PLACES)
def test_what_is_not_a_file_is_a_sentence(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for kind in _KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        words = [word.replace("FILE", f"{folder}/x").replace("OUT", f"{folder}/out") for word in _PLACES[place]]
        named = next(word for word in words if f"{folder}/x" in word)
        _put(kind, folder / f"x{named.partition(f'{folder}/x')[2].partition(chr(39))[0]}")
        code, output = call_main(words, monkeypatch)
        if place == "an image" and kind == "empty":
            assert "1 bad rows found" in output
            continue
        assert code == (1 if place == "a cluster" and kind == "empty" else 2), (kind, code, output)
        assert "Error: " in output or kind == "empty"


def test_a_run_directory_with_a_pipe_in_the_place_of_a_file(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    run = Path(make_run())
    for name in ("config.yaml", "index.arrow", "metrics.jsonl", "summary.json", "environment.json", "quarantine.jsonl", "views.png"):
        if is_there := (run / name).exists():
            (run / name).rename(run / f"{name}.aside")
        os.mkfifo(run / name)
        for words in (["report", str(run)], ["pretrain", str(run), "--run-dir", str(run), "--resume"]):
            code, output = call_main(words, monkeypatch)
            assert code == 2 or (words[0] == "report" and (run / "report.html").is_file()), (name, output)
        (run / name).unlink(missing_ok=True)
        if is_there:
            (run / f"{name}.aside").rename(run / name)


def test_a_pipe_among_crds_or_kept_features_is_a_sentence(tmp_path: Path):
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match="a pipe or a device, not a file"):
        read_schemas(tmp_path)
    with pytest.raises(ValueError, match="it is not a file"):
        read_features(str(tmp_path / "x.yaml"))


def test_crds_that_are_not_text_are_a_sentence(tmp_path: Path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_schemas(tmp_path)


@pytest.mark.parametrize("verb", ["search", "ablation"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"hello\n", "line 1, cannot be run: NameError: name 'hello' is not defined"), (b"x = (\n", "SyntaxError"), (b"\0", "null bytes"),
     (b"\n\nimport no_such_thing", "line 3, cannot be run: ModuleNotFoundError")],
)  # fmt: skip
def test_a_python_file_that_cannot_be_run_is_a_sentence(
    verb: str, text: bytes, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "mine.py").write_bytes(text)
    words = [verb, *(["run"] if verb == "search" else []), f"{tmp_path}/mine.py", "--study-dir", f"{tmp_path}/study"]
    code, output = call_main(words, monkeypatch)
    assert code == 2, output
    assert reason in " ".join(output.split())
