"""Places where nothing can be written, a user without a home or a name, and a current folder that is gone."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ray_sassl.files.cache import cache_dir
from ray_sassl.process.errors import UsageError
from tests.cli.in_process import call_main
from tests.exporting.conftest import MakeRun, make_run
from tests.field.hostile import make_hostile_study

__all__ = ["make_run"]


def test_what_cannot_be_written_is_a_sentence_with_the_place_in_it(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("COLUMNS", "400")
    file = tmp_path / "file"
    file.write_text("")
    run = make_run()
    assert call_main(["evaluate", run, "knn", "k=3"], monkeypatch)[0] == 0
    study = make_hostile_study(tmp_path / "study", "plain", 1)
    data = f"{tmp_path}/train.parquet"
    places = (f"{file}/below", f"{file}/below/x", "/proc/nothing/x", f"{tmp_path}/{'x' * 300}")
    commands = [
        ["report", run],
        ["data", "inspect", data],
        ["views", "demo_plain", f"data.path={data}", "views.size_px=16"],
        ["evaluate", run, "knn", "k=3"],
        ["compare", run, run],
        ["export", run],
        ["search", "compare", study, study],
        ["stylize", "preview", data, "--styles", data, "stylize=color_statistics"],
    ]
    for number, words in enumerate([*commands, *commands[:1] * 3]):
        place = places[number % len(places)]
        code, output = call_main([*words, "--out", place], monkeypatch)
        assert code == 2, (words, output)
        assert "Error: " in output
        assert place.split("/")[1] in output


def test_a_report_into_a_directory_that_must_not_be_written_to_is_a_sentence(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    run = make_run()

    def refused(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    code, output = call_main(["report", run], monkeypatch)
    assert code == 2
    assert "Error: [Errno 13] Permission denied: " in output.replace("\n", "")


def test_a_file_beyond_the_limit_of_the_system_is_a_sentence(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    make_run()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code, output = call_main(["data", "inspect", f"{tmp_path}/train.parquet", "--out", f"{tmp_path}/sheet.png"], monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2, output
    assert "Error: [Errno 27] File too large" in output
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ETIMEDOUT, errno.ESTALE, errno.ENODEV, errno.EIO, errno.ENOLCK])
def test_a_disk_of_the_network_that_is_gone_is_a_sentence(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def gone(path: Path, *words: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    monkeypatch.setattr(Path, "open", gone)
    code, output = call_main(["data", "inspect", f"{tmp_path}/images", "--out", f"{tmp_path}/sheet.png"], monkeypatch)
    assert code == 2, output
    assert f"Error: [Errno {number}] {os.strerror(number)}" in " ".join(output.split())


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that the machine has no entry for, as containers give, and no HOME."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "XDG_CACHE_HOME", "RAY_SASSL_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_home_and_name_can_work_if_folders_are_given(
    homeless: None, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    run = make_run()
    for words in (
        ["report", run],
        ["evaluate", run, "knn", "k=3"],
        ["experiments", "demo"],
        ["job", "list", "--address", "http://127.0.0.1:1"],
    ):
        code, output = call_main(words, monkeypatch)
        assert code == (2 if words[0] == "job" else 0), output


def test_what_needs_a_home_says_what_to_set(homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"has no home folder; set HOME, or give the whole path, or set RAY_SASSL_CACHE"):
        cache_dir()
    for words in (["weights", "list"], ["data", "inspect", "~/photos"], ["report", "~/run"], ["views", "demo"], ["data", "cards"]):
        code, output = call_main(words, monkeypatch)
        assert code == 2, words
        assert "no home folder" in output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_ray_without_a_home_is_a_sentence(tmp_path: Path):
    """In a process of its own, which imports Ray anew; its user has no entry and no home."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (9 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    script = "import pwd, sys\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\nfrom ray_sassl.cli import main\nmain()"
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    env |= {"RAY_SASSL_CACHE": str(tmp_path / "cache"), "MPLCONFIGDIR": str(tmp_path)}
    for words in (["pretrain", "images", "--dry-run"], ["data", "check", "images"]):
        ended = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, ended.stderr
        assert "this user has no home folder" in ended.stderr
        assert "set HOME" in ended.stderr


def test_a_home_that_cannot_be_written_to_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "RAY_SASSL_CACHE"):
        monkeypatch.delenv(name)
    code, output = call_main(["views", "demo_plain", "--out", str(tmp_path / "views.png")], monkeypatch)
    assert code == 2
    assert "Error: " in output
    assert "home" in output


def test_a_current_folder_that_is_gone_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    code, output = call_main(["version"], monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert code == 2
    assert "the current folder is no longer there" in output
