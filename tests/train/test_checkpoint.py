import base64
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from ray_sassl.data.seen import SeenIds
from ray_sassl.train import checkpoint_folder
from ray_sassl.train.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, write_checkpoint
from ray_sassl.train.checkpoint_folder import (
    FORMAT,
    MANIFEST,
    BadCheckpointError,
    Manifest,
    list_checkpoints,
    newest_seen,
    read_seen,
)

FILES = checkpoint_folder.FILES[FORMAT]

CONFIG_YAML = "name: tiny\n"


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(3, 2).to(memory_format=torch.preserve_format)
        self.head = nn.BatchNorm1d(2)


def _save(run_dir: Path | str, step: int, *, seed: int = 0, keep: int = 2, **state: Any) -> str:
    return write_checkpoint(str(run_dir), step, Network(seed).state_dict(), state, _seen(step), CONFIG_YAML, keep)


def _seen(rows: int) -> SeenIds:
    """As many rows of epoch 0 as the step says, at most nine of ten."""
    seen = SeenIds(10)
    seen.add(np.zeros(min(rows, 9), np.int64), np.arange(min(rows, 9)))
    return seen


def _in_format_1(path: str) -> str:
    """The same checkpoint as it was written before `seen.json`: with the record in state.pt, as a dict."""
    folder = Path(path)
    opened = {0: zlib.compress(np.packbits(~read_seen(path).unseen(0, np.arange(10))).tobytes(), 1)}
    state = torch.load(folder / "state.pt") | {"seen": {"num_rows": 10, "complete": [2], "open": opened}}
    torch.save(state, folder / "state.pt")
    (folder / "seen.json").unlink()
    _write_manifest(folder, 1, ("model.safetensors", "state.pt", "config.yaml"))
    return path


def _in_format_2(path: str) -> str:
    """The same checkpoint as it was written before lists of missing rows: with a bitmap of every epoch that lacks a row."""
    opened = {0: base64.b64encode(zlib.compress(np.packbits(~read_seen(path).unseen(0, np.arange(10))).tobytes(), 1)).decode()}
    (Path(path) / "seen.json").write_text(json.dumps({"num_rows": 10, "complete": [2], "open": opened}))
    _write_manifest(Path(path), 2, ("model.safetensors", "state.pt", "seen.json", "config.yaml"))
    return path


def _write_manifest(folder: Path, number: int, names: tuple[str, ...]) -> None:
    contents = {name: (folder / name).read_bytes() for name in names}
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    step = int(folder.name.removeprefix("step-"))
    (folder / MANIFEST).write_text(json.dumps({"format": number, "step": step, "files": digests}, indent=2))


def _latest(run_dir: Path | str) -> Checkpoint:
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    return checkpoint


def test_what_is_read_is_what_was_written(tmp_path):
    state = {"optimizer": {"state": {0: {"momentum_buffer": torch.arange(3.0)}}}}
    checkpoint = read_checkpoint(_save(tmp_path, 12, **state))  # pyright: ignore[reportArgumentType]
    other = Network(seed=5)
    checkpoint.load_method(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in Network().state_dict().items())
    assert (checkpoint.step, checkpoint.config_yaml) == (12, CONFIG_YAML)
    assert checkpoint.seen.encode() == _seen(12).encode()
    assert torch.equal(checkpoint.state["optimizer"]["state"][0]["momentum_buffer"], torch.arange(3.0))


def test_the_encoder_alone_is_a_safetensors_file(tmp_path):
    backbone = safetensors.torch.load_file(Path(_save(tmp_path, 1)) / "model.safetensors")
    assert backbone.keys() == {"weight", "bias"}


def test_the_state_is_loaded_without_unpickling_code(tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = Path(_save(tmp_path, 1))
    torch.save({"method": Payload()}, path / "state.pt")
    (path / MANIFEST).write_bytes(Manifest.describing(1, {name: (path / name).read_bytes() for name in FILES}).encode())
    with pytest.raises(BadCheckpointError, match=r"state\.pt holds more than tensors and plain values"):
        read_checkpoint(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_flipped_byte_is_refused_by_name_and_the_previous_checkpoint_is_used(tmp_path, caplog, name):
    _save(tmp_path, 1)
    path = Path(_save(tmp_path, 2)) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert _latest(tmp_path).step == 1
    assert name in caplog.text
    assert "step-00000002" in caplog.text


def test_no_byte_of_the_manifest_can_change_unnoticed(tmp_path):
    path = Path(_save(tmp_path, 2)) / MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadCheckpointError):
            read_checkpoint(str(path.parent))
    path.write_bytes(whole)
    assert read_checkpoint(str(path.parent)).step == 2


def test_a_file_that_no_parser_can_take_is_damage_too(tmp_path):
    for content in (b"[" * 10**6, b"9" * 5000):
        path = Path(_save(tmp_path, 2))
        (path / MANIFEST).write_bytes(content)
        with pytest.raises(BadCheckpointError, match="damaged"):
            read_checkpoint(str(path))
        (path / MANIFEST).unlink()
        (path / MANIFEST).symlink_to(path / MANIFEST)
        with pytest.raises(BadCheckpointError, match="leads to itself"):
            read_checkpoint(str(path))
        (path / MANIFEST).unlink()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused_by_name(tmp_path, name):
    path = _save(tmp_path, 1)
    (Path(path) / name).unlink()
    with pytest.raises(BadCheckpointError, match=rf"not a whole checkpoint: it has no {name}"):
        read_checkpoint(path)
    assert latest_checkpoint(str(tmp_path)) is None


def test_a_checkpoint_in_the_place_of_another_step_is_refused(tmp_path):
    path = Path(_save(tmp_path, 3))
    path.rename(path.with_name("step-00000009"))
    with pytest.raises(BadCheckpointError, match=r"manifest\.json"):
        read_checkpoint(str(path.with_name("step-00000009")))


def test_a_copy_under_another_name_is_read(tmp_path):
    shutil.copytree(_save(tmp_path, 3), tmp_path / "best")
    assert read_checkpoint(str(tmp_path / "best")).step == 3


def test_a_newer_format_is_refused(tmp_path):
    path = Path(_save(tmp_path, 1)) / MANIFEST
    path.write_text(path.read_text().replace('"format": 3', '"format": 4'))
    with pytest.raises(BadCheckpointError, match="format 4, this program reads format 1, 2, 3"):
        read_checkpoint(str(path.parent))


def test_a_partly_written_folder_is_not_taken_for_a_checkpoint(tmp_path):
    _save(tmp_path, 1)
    whole = Path(_save(tmp_path, 2))
    shutil.copytree(whole, whole.with_name(".step-00000003.0123456789ab.part"))
    (whole.with_name("step-00000004")).mkdir()  # as an object store shows a checkpoint of which nothing but a part has arrived
    shutil.copy(whole / "model.safetensors", whole.with_name("step-00000004"))
    (whole.with_name("step-00000005")).touch()
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [1, 2, 4]
    assert _latest(tmp_path).step == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    _save(tmp_path, 1)

    def fail(*paths: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("ray_sassl.files.storage.move", fail)
    with pytest.raises(OSError, match="no space"):
        _save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_only_the_newest_stay(tmp_path):
    for step in (5, 10, 100_000_000, 200_000_000):
        _save(tmp_path, step, keep=3)
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [10, 100_000_000, 200_000_000]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    _save(tmp_path, 1, seed=1)
    _save(tmp_path, 1, seed=2)
    assert torch.equal(_latest(tmp_path).backbone["weight"], Network(2).backbone.weight)


def test_a_sound_checkpoint_is_never_removed_for_a_damaged_one_of_a_later_step(tmp_path):
    _save(tmp_path, 4, keep=1)
    _save(tmp_path, 8, keep=2)
    (tmp_path / "checkpoints" / "step-00000008" / "state.pt").write_bytes(b"damaged")
    assert _latest(tmp_path).step == 4
    _save(tmp_path, 5, keep=1)
    assert _latest(tmp_path).step == 5
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [5]


def test_a_run_without_checkpoints_has_no_latest_one(tmp_path):
    assert latest_checkpoint(str(tmp_path)) is None
    assert newest_seen(str(tmp_path)) is None


@pytest.mark.parametrize(("as_before", "record"), [(_in_format_1, "state.pt"), (_in_format_2, "seen.json")])
def test_a_checkpoint_of_an_older_format_is_read_with_what_it_has_seen(tmp_path, as_before, record):
    path = as_before(_save(tmp_path, 4, optimizer={"lr": 0.1}))
    checkpoint = read_checkpoint(path)
    assert (checkpoint.step, checkpoint.state["optimizer"], checkpoint.config_yaml) == (4, {"lr": 0.1}, CONFIG_YAML)
    assert torch.equal(checkpoint.backbone["weight"], Network().backbone.weight)
    for seen in (checkpoint.seen, read_seen(path)):
        assert [seen.count(epoch) for epoch in range(3)] == [4, 0, 10]
    (Path(path) / record).write_bytes(b"damaged")
    with pytest.raises(BadCheckpointError, match=re.escape(record)):
        read_seen(path)


def test_what_was_seen_is_read_without_the_weights(tmp_path, monkeypatch):
    path = _save(tmp_path, 5)
    read = []

    def noted(whole: str) -> bytes:
        read.append(Path(whole).name)
        return Path(whole).read_bytes()

    monkeypatch.setattr("ray_sassl.files.storage.read_bytes", noted)
    assert read_seen(path).count(0) == 5
    assert sorted(read) == [MANIFEST, "seen.json"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_or_one_that_was_cut_off_is_not_chosen_for_the_stream(tmp_path, name):
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])):
        _save(tmp_path, 1)
        damage(Path(_save(tmp_path, 2)) / name)
        path, seen = newest_seen(str(tmp_path)) or ("", SeenIds(0))
        assert (Path(path).name, seen.count(0)) == ("step-00000001", 1)


def test_a_checkpoint_that_was_refused_for_its_weights_is_passed_over(tmp_path):
    first, second = _save(tmp_path, 1), _save(tmp_path, 2)
    found = [newest_seen(str(tmp_path), refused) for refused in ((), {second})]
    assert [path for path, _ in filter(None, found)] == [second, first]
    with pytest.raises(BadCheckpointError, match=r"every checkpoint of .* is damaged"):
        newest_seen(str(tmp_path), {first, second})


def test_a_run_directory_may_be_a_file_uri(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path.as_uri(), step)
    assert _latest(tmp_path.as_uri()).step == 3
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [2, 3]


FOREIGN = {
    "weights that are none": ("model.safetensors", b"no tensors"),
    "a state that is none": ("state.pt", b"no state"),
    "a record that is none": ("seen.json", b"[]"),
    "a record of another shape": ("seen.json", b'{"num_rows": "ten", "complete": 3, "open": {}}'),
    "a record of all epochs there are": ("seen.json", b'{"num_rows": 10, "complete": [[0, 1000000000000]], "open": {}, "missing": []}'),
    "a record with a bitmap of another size": (
        "seen.json",
        b'{"num_rows": 10, "complete": [], "open": {"0": "eJz7DwABAQEA"}, "missing": []}',
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_somebody_else_has_written_and_signed_is_refused_by_name(tmp_path, kind, caplog):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    name, content = FOREIGN[kind]
    (Path(path) / name).write_bytes(content)
    _write_manifest(Path(path), FORMAT, FILES)
    with pytest.raises(BadCheckpointError, match=rf"{name} (cannot be read .* it is damaged|holds more than tensors)"):
        read_checkpoint(path)
    assert _latest(tmp_path).step == 1
    assert name in caplog.text
    if name == "seen.json":
        with pytest.raises(BadCheckpointError, match="cannot be read"):
            read_seen(path)
