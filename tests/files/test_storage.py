import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json_lines
from ray_sassl.process.errors import UsageError


def test_a_written_file_is_read_back_and_no_other_file_remains(tmp_path: Path):
    path = storage.join(str(tmp_path), "a", "b.txt")
    storage.write_text(path, "grün")
    assert storage.read_text(path) == "grün"
    assert [entry.path for entry in storage.list_dir(tmp_path, recursive=True) if entry.is_file] == [path]


def test_an_exception_while_writing_keeps_the_old_content(tmp_path: Path):
    path = tmp_path / "a"
    storage.write_bytes(path, b"old")

    def write_in_part() -> None:
        with storage.open_atomic(path) as file:
            file.write(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_in_part()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_joining_and_parting_keeps_the_options_of_a_uri():
    path = storage.join("s3://bucket/run?endpoint_override=localhost:9000", "checkpoints", "1")
    assert path == "s3://bucket/run/checkpoints/1?endpoint_override=localhost:9000"
    assert storage.parent(path) == "s3://bucket/run/checkpoints?endpoint_override=localhost:9000"
    assert storage.name_of(path) == "1"


def test_a_file_uri_is_the_local_file(tmp_path: Path):
    storage.write_text(f"file://{tmp_path}/x", "1")
    assert (tmp_path / "x").read_text() == "1"
    assert [entry.path for entry in storage.list_dir(f"file://{tmp_path}")] == [f"file://{tmp_path}/x"]


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="s3://"):
        storage.filesystem_of("ftp://host/file")


def test_a_folder_is_moved_and_removed_with_all_it_holds(tmp_path: Path):
    storage.write_text(tmp_path / "a" / "x", "1")
    storage.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "x").read_text() == "1"
    storage.remove(tmp_path / "b")
    storage.remove(tmp_path / "b")
    assert not storage.exists(tmp_path / "b")


def test_what_is_not_there_is_neither_listed_nor_found(tmp_path: Path):
    assert storage.list_dir(tmp_path / "none") == []
    assert storage.stat(tmp_path / "none") is None


def test_a_bucket_whose_region_cannot_be_asked_for_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch):
    def fail(uri: str) -> None:
        raise OSError("When resolving region for bucket 'mine': Could not resolve host")

    monkeypatch.setattr(storage.pafs, "FileSystem", SimpleNamespace(from_uri=fail))
    with pytest.raises(storage.StorageError, match="cannot reach 's3://no-such-bucket': When resolving region"):
        storage.exists("s3://no-such-bucket/x")


def test_names_that_no_file_can_have_are_not_there_or_refused(tmp_path: Path):
    assert not storage.exists(tmp_path / ("x" * 5000))
    (tmp_path / "file").touch()
    assert not storage.exists(tmp_path / "file" / "below")
    with pytest.raises(UsageError, match="holds a zero byte"):
        storage.exists("a\0b")


def test_what_is_not_a_file_or_is_larger_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "memory_bytes", lambda: 10**9)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**32)
    for name, says in (("loop", "a link that leads to itself"), ("pipe", "a folder, a pipe or a device"), ("sparse", "bytes; at most")):
        with pytest.raises(UsageError, match=says):
            storage.read_bytes(tmp_path / name)
    with pytest.raises(UsageError, match="bytes; at most"):
        read_json_lines(str(tmp_path / "sparse"))


def test_a_device_or_a_pipe_is_never_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(UsageError, match="a device, a pipe or a socket; give the name of a file"):
            storage.write_bytes(tmp_path / name, b"x")
        with pytest.raises(UsageError, match="a device, a pipe or a socket; give the name of a file"):
            storage.check_can_write(tmp_path / name)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
