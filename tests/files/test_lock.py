import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_sassl.files import lock, storage
from ray_sassl.files.lock import LOCK, FolderInUseError, hold_folder
from tests.flaky_store import s3_options, s3_server

HOLDER = """
import sys, time
from ray_sassl.files.lock import hold_folder
with hold_folder(sys.argv[1], "pretrain"):
    print("held", flush=True)
    sys.stdin.readline()
"""

STARTER = """
import sys
from ray_sassl.files.lock import FolderInUseError, hold_folder
sys.stdin.readline()
try:
    with hold_folder(sys.argv[1], "x"):
        print("mine", flush=True)
        sys.stdin.readline()
except FolderInUseError:
    print("refused", flush=True)
"""


def _holder(folder: Path | str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_command_is_refused_while_the_first_runs_and_learns_which_it_is(tmp_path: Path):
    with _holder(tmp_path) as first:
        with (
            pytest.raises(FolderInUseError, match=rf"'pretrain' is at work there, on .* as process {first.pid}"),
            hold_folder(str(tmp_path), "b"),
        ):
            pass
        first.communicate("\n")
    with hold_folder(str(tmp_path), "b"):
        assert json.loads((tmp_path / LOCK).read_text())["command"] == "b"
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_does_not_get_it_twice(tmp_path: Path):
    with hold_folder(str(tmp_path), "a"), pytest.raises(FolderInUseError, match="'a' is at work"), hold_folder(str(tmp_path), "b"):
        pass


def test_a_killed_commands_folder_is_taken_over_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with _holder(tmp_path) as first:
        first.kill()
        first.wait()
        with hold_folder(str(tmp_path), "b"):
            pass
    assert f"taking over {tmp_path} from 'pretrain'" in caplog.text


def test_another_machines_folder_is_taken_over_once_its_heartbeat_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = {"token": "x", "host": "other", "place": "", "pid": 1, "started": "1", "command": "pretrain", "beat": 3}
    (tmp_path / LOCK).write_text(json.dumps(there))
    monkeypatch.setattr(lock, "STALE_S", 0.3)
    with hold_folder(str(tmp_path), "b"):
        assert json.loads((tmp_path / LOCK).read_text())["command"] == "b"


def test_another_machines_folder_is_refused_as_soon_as_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = {"token": "x", "host": "other", "place": "", "pid": 1, "started": "1", "command": "pretrain", "beat": 3}
    (tmp_path / LOCK).write_text(json.dumps(there))
    monkeypatch.setattr(lock, "STALE_S", 600.0)
    looked = threading.Event()
    read = lock._read

    def beat_after_a_look(path: str):
        found = read(path)
        if looked.is_set():
            storage.write_text(path, json.dumps(there | {"beat": 4}))
        looked.set()
        return found

    monkeypatch.setattr(lock, "_read", beat_after_a_look)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    with pytest.raises(FolderInUseError, match="on other as process 1"), hold_folder(str(tmp_path), "b"):
        pass


def test_the_heart_beats_while_the_folder_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with hold_folder(str(tmp_path), "a"):
        while json.loads((tmp_path / LOCK).read_text())["beat"] < 3:
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 1}'])
def test_a_lock_that_cannot_be_read_is_not_believed_to_be_free(content: str, tmp_path: Path):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(FolderInUseError, match=r"If nothing is, delete .*\.lock"), hold_folder(str(tmp_path), "b"):
        pass


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path: Path):
    there = {"token": "x", "host": "h", "place": lock._place(), "pid": 2**22 - 1, "started": "1", "command": "killed", "beat": 3}
    (tmp_path / LOCK).write_text(json.dumps(there))  # which all of them want to take over
    many = [
        subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in many:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in many if process.stdout is not None]
    for process in many:
        process.communicate("\n")
    assert sorted(answers) == ["mine", *["refused"] * 5]


@pytest.mark.slow
def test_a_folder_of_an_object_store_is_held_alone_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "_SETTLE_S", 0.1)
    with s3_server() as server:
        folder = f"s3://bucket/run{s3_options(server)}"
        with hold_folder(folder, "a"), pytest.raises(FolderInUseError, match=f"as process {os.getpid()}"), hold_folder(folder, "b"):
            pass
        assert not storage.exists(storage.join(folder, LOCK))
