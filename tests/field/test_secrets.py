"""A URI with a secret in each place where one can be given: the secret's text is in no file and on no screen."""

from __future__ import annotations

import gzip
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ray_sassl.cli
from ray_sassl.files import storage
from ray_sassl.runs.directory import environment
from tests.exporting.conftest import make_run  # noqa: F401

SECRET = "hunter2XYZ"
URIS = {
    "a key pair": f"s3://AKIAEXAMPLE:{SECRET}@bucket/photos?endpoint_override=localhost:1&scheme=http",
    "a token": f"gs://bucket/photos?token={SECRET}",
    "a presigned address": f"https://bucket.s3.amazonaws.com/photos?X-Amz-Credential=AKIAEXAMPLE&X-Amz-Signature={SECRET}",
}
PLACES = {
    "pretrain, its data": ["pretrain", "demo_plain", "data.path=URI", "--run-dir", "RUN"],
    "pretrain, a list of data": ["pretrain", "demo_plain", "data.path=[photos, 'URI']", "--run-dir", "RUN"],
    "pretrain, its scores": ["pretrain", "demo_plain", "evaluate.train={path: 'URI'}", "--run-dir", "RUN"],
    "pretrain, a bank": ["pretrain", "demo", "sassl={style_source: bank, bank: 'URI'}", "--run-dir", "RUN"],
    "pretrain, its name": ["pretrain", "demo_plain", "name=URI", "--run-dir", "RUN"],
    "pretrain, a tracker": ["pretrain", "demo_plain", "tracking.wandb_project=URI", "--run-dir", "RUN"],
    "pretrain, the experiment": ["pretrain", "URI/mine.yaml", "--run-dir", "RUN"],
    "pretrain, an override in the wrong place": ["pretrain", "demo_plain", "data.pth=URI", "--run-dir", "RUN"],
    "pretrain, the run directory": ["pretrain", "demo_plain", "--run-dir", "URI"],
    "views": ["views", "demo_plain", "data.path=URI", "--out", "RUN/views.png"],
    "data inspect": ["data", "inspect", "URI", "--out", "RUN/sheet.png"],
    "data convert, from": ["data", "convert", "URI", "RUN", "--format", "parquet"],
    "data convert, to": ["data", "convert", "PHOTOS", "URI", "--format", "parquet"],
    "stylize bank": ["stylize", "bank", "URI", "--out", "RUN/bank.safetensors", "stylize=color_statistics"],
    "stylize bank, to": ["stylize", "bank", "PHOTOS", "--out", "URI", "stylize=color_statistics"],
    "stylize dataset": ["stylize", "dataset", "URI", "RUN", "stylize=color_statistics"],
    "stylize dataset, its bank": ["stylize", "dataset", "PHOTOS", "RUN", "stylize=color_statistics", "--bank", "URI"],
    "search, its data": ["search", "run", "style_strength", "data.path=URI", "--study-dir", "RUN"],
    "search, the study": ["search", "run", "style_strength", "--study-dir", "URI"],
    "search, a space": ["search", "run", "SPACE", "--study-dir", "RUN"],
    "evaluate, the run": ["evaluate", "URI", "knn", "--out", "RUN"],
    "evaluate, its data": ["evaluate", "ENCODER", "knn", "evaluate.test.path=URI", "--out", "RUN"],
    "evaluate, the results": ["evaluate", "ENCODER", "knn", "--out", "URI"],
    "detect": ["detect", "ENCODER", "URI", "--out", "RUN"],
    "embed": ["embed", "ENCODER", "URI", "--out", "RUN/features.parquet"],
    "embed, to": ["embed", "ENCODER", "PHOTOS", "--out", "URI"],
    "export": ["export", "URI", "--out", "RUN"],
    "export, to": ["export", "ENCODER", "--out", "URI"],
    "report": ["report", "URI", "--out", "RUN/report.html"],
    "compare": ["compare", "ENCODER", "URI", "--out", "RUN"],
    "a saved config": ["pretrain", "SAVED", "--run-dir", "RUN"],
    "a word too many": ["version", "URI"],
}


def all_contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file as it is, and once more as what it holds where that is compressed."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            yield path, str(path).encode() + content
            if content[:2] == b"\x1f\x8b":
                yield path, gzip.decompress(content)
            elif content[:6] == b"ARROW1":
                table = pa.ipc.open_file(path).read_all()
                yield path, f"{table.schema.metadata} {table.to_pylist()}".encode()
            elif content[:4] == b"PAR1":
                table = pq.read_table(path)
                yield path, f"{table.schema.metadata} {table.to_pylist()}".encode()


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path, content in all_contents(folder) if text.encode() in content]


@pytest.fixture
def ray_sassl_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process; gives its exit code and what it printed."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(logging.root, "handlers", [])
        monkeypatch.setattr(sys, "argv", ["ray-sassl", *words])
        with pytest.raises(SystemExit) as ended:
            ray_sassl.cli.main()
        output = capfd.readouterr()
        return int(ended.value.code or 0), output.out + output.err

    return run


@pytest.fixture
def fill(tmp_path: Path, make_run: Callable[..., str]) -> Callable[[str, str], str]:  # noqa: F811
    """Puts what a word stands for in its place."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number, 9, 9)).save(photos / f"{number}.png")

    def put(word: str, uri: str) -> str:
        places = {"RUN": tmp_path / "out", "PHOTOS": photos, "SPACE": tmp_path / "space.yaml", "SAVED": tmp_path / "saved.yaml"}
        for name, path in places.items():
            word = word.replace(name, str(path))
        if "ENCODER" in word:
            word = word.replace("ENCODER", make_run())
        return word.replace("URI", uri)

    space = "experiment: demo_plain\nparameters: [{kind: choice, path: data.path, choices: [photos, 'URI']}]\n"
    (tmp_path / "space.yaml").write_text(space)
    (tmp_path / "saved.yaml").write_text("name: mine\ndata: {path: 'URI'}\nviews: {}\nbackbone: {}\nmethod: simclr\n")
    return put


CASES = [(place, kind, is_seen) for place in PLACES for kind, is_seen in (("a token", True), ("a key pair", False))]
CASES += [(place, "a presigned address", False) for place in ("pretrain, its data", "data convert, to", "a saved config")]


@pytest.mark.parametrize(("place", "kind", "is_seen_at_once"), CASES)
def test_a_secret_in_a_uri_is_refused_and_is_nowhere(
    place: str, kind: str, is_seen_at_once: bool, tmp_path: Path, fill, ray_sassl_main, monkeypatch: pytest.MonkeyPatch
):
    words = [fill(word, URIS[kind]) for word in PLACES[place]]
    if not is_seen_at_once:
        monkeypatch.setattr(ray_sassl.cli, "_refuse_secrets", lambda words: None)
    given = [tmp_path / name for name in ("space.yaml", "saved.yaml")]
    for path in given:
        path.write_text(path.read_text().replace("URI", URIS[kind]))
    code, output = ray_sassl_main(*words)
    assert code == 2, output
    assert SECRET not in output
    if is_seen_at_once or place not in ("pretrain, an override in the wrong place", "a word too many"):
        assert "AWS_SECRET_ACCESS_KEY" in " ".join(output.split()), output
    assert set(files_with(SECRET, tmp_path)) <= set(given)


def test_a_page_about_a_run_with_a_secret_in_its_config_shows_none(tmp_path: Path, fill, ray_sassl_main):
    run = Path(fill("ENCODER", ""))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"{tmp_path}/train.parquet", URIS["a key pair"]))
    (run / "environment.json").write_text(f'{{"command": ["ray-sassl", "data.path={URIS["a token"]}"], "packages": {{}}}}')
    code, output = ray_sassl_main("report", str(run))
    assert code == 0, output
    assert (run / "report.html").is_file()
    assert set(files_with(SECRET, run)) == {run / "config.yaml", run / "environment.json"}
    code, output = ray_sassl_main("pretrain", str(run), "--run-dir", str(run), "--resume")
    assert code == 2
    assert SECRET not in output
    assert "AWS_SECRET_ACCESS_KEY" in " ".join(output.split())


def test_the_record_of_the_environment_shows_no_secret_of_a_script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["mine.py", URIS["a token"], "--fast"])
    assert environment()["command"] == ["mine.py", "gs://bucket/photos?token=***", "--fast"]


def test_an_address_with_a_password_in_the_environment_is_in_no_message(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(storage, "_PAUSES_S", (0.0,))

    def fail() -> None:
        raise OSError(f"AWS Error NETWORK_CONNECTION: http://user:{SECRET}@127.0.0.1:1 does not answer")

    with pytest.raises(storage.StorageError, match="does not answer") as raised:
        storage.retried("s3://bucket/photos?region=eu-1", fail)
    assert SECRET not in str(raised.value) + caplog.text
    assert "http://***@127.0.0.1:1 does not answer" in caplog.text


def test_a_traceback_shows_no_secret(ray_sassl_main, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def fail(*words: object, **named: object) -> None:
        raise RuntimeError(f"API request to https://user:{SECRET}@tracker.example.org/api failed")

    monkeypatch.setattr(ray_sassl.cli, "app", fail)
    with pytest.raises(RuntimeError) as raised:
        ray_sassl_main("version")
    sys.excepthook(raised.type, raised.value, raised.tb)
    error = capfd.readouterr().err
    assert SECRET not in error
    assert "RuntimeError: API request to https://***@tracker.example.org/api failed" in error


def test_the_log_shows_no_secret(ray_sassl_main, monkeypatch: pytest.MonkeyPatch):
    def warn(*words: object, **named: object) -> None:
        logging.getLogger("another.library").warning("retrying http://user:%s@proxy.example.org:3128/%s", SECRET, "x" * 200)

    monkeypatch.setattr(ray_sassl.cli, "app", warn)
    _, output = ray_sassl_main("version")
    assert SECRET not in "".join(output.split())
    assert "retrying" in output
