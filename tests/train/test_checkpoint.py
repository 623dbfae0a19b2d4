import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from ray_sassl.train.checkpoint import (
    FILES,
    MANIFEST,
    BadCheckpointError,
    Checkpoint,
    _manifest,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
)

CONFIG_YAML = "name: tiny\n"


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(3, 2).to(memory_format=torch.preserve_format)
        self.head = nn.BatchNorm1d(2)


def _save(run_dir: Path | str, step: int, *, seed: int = 0, keep: int = 2, **state: Any) -> str:
    return save_checkpoint(str(run_dir), step, Network(seed), state, CONFIG_YAML, keep)


def _latest(run_dir: Path | str) -> Checkpoint:
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    return checkpoint


def test_what_is_read_is_what_was_written(tmp_path):
    state = {"optimizer": {"state": {0: {"momentum_buffer": torch.arange(3.0)}}}, "seen": {"open": {1: b"\x00\xff"}, "complete": [0]}}
    checkpoint = read_checkpoint(_save(tmp_path, 12, **state))
    other = Network(seed=5)
    checkpoint.load_method(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in Network().state_dict().items())
    assert (checkpoint.step, checkpoint.config_yaml) == (12, CONFIG_YAML)
    assert checkpoint.state["seen"] == state["seen"]
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
    (path / MANIFEST).write_bytes(_manifest(1, {name: (path / name).read_bytes() for name in FILES}))
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
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BadCheckpointError, match="format 2, this program reads format 1"):
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


def test_a_run_directory_may_be_a_file_uri(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path.as_uri(), step)
    assert _latest(tmp_path.as_uri()).step == 3
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [2, 3]
