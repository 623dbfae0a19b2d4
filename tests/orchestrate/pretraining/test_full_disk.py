"""A full disk at each file that a run writes: the run ends with the reason, and the same command goes on once there is room."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

import ray_sassl
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from ray_sassl.train.checkpoint import latest_checkpoint
from tests.test_api import overrides_for, write_photos

pytestmark = pytest.mark.chaos

FILES = (
    "config.yaml", "environment.json", "index.arrow", "views.png", "metrics.jsonl", "model.safetensors", "state.pt", "seen.json",
    "manifest.json", "summary.json", "quarantine.jsonl", ".ray-sassl",
)  # fmt: skip


@contextmanager
def _no_room_for(name: str, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within the block no file of this name can be written; the list says which were tried."""
    tried: list[str] = []
    open_atomic = storage.open_atomic

    @contextmanager
    def full(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
        if storage.name_of(path) != name:
            with open_atomic(path) as file:
                yield file
            return
        tried.append(str(path))
        yield io.BytesIO()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    append_text = storage.append_text

    def append(path: str | os.PathLike[str], text: str) -> None:
        if storage.name_of(path) == name:
            tried.append(str(path))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append_text(path, text)

    with patch.context() as inner:
        inner.setattr(storage, "open_atomic", full)
        inner.setattr(storage, "append_text", append)
        yield tried


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    photos = write_photos(tmp_path / "photos", 49)
    (tmp_path / "photos" / "a" / "48.png").write_bytes(b"no image")
    return overrides_for(photos) | {"train.epochs": 2, "train.checkpoint_every": 3, "data.max_bad_fraction": 0.1}


@pytest.mark.parametrize("name", FILES)
def test_a_run_without_room_for_a_file_says_so_and_goes_on_once_there_is_some(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    with _no_room_for(name, monkeypatch) as tried, pytest.raises((UsageError, OSError), match="No space left on device"):
        ray_sassl.pretrain("moco_cifar10_cpu", run, overrides=options)
    assert tried, "the run writes it"
    assert not [path for path in run.rglob("*.part")], "nothing half-written stays"
    result = ray_sassl.pretrain("moco_cifar10_cpu", run, overrides=options, resume="if begun")
    assert (result.status, result.step) == ("finished", 6)
    checkpoint = latest_checkpoint(str(run))
    assert checkpoint is not None
    assert checkpoint.step == 6
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_the_list_has_every_file_that_a_run_writes(options: dict[str, Any], tmp_path: Path):
    ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=options)
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names - set(FILES) == set()
