"""Checkpoints that are written beside the training: copies, one at a time, and errors that come to light."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_sassl.data.seen import SeenIds
from ray_sassl.train.checkpoint import latest_checkpoint, read_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints
from ray_sassl.train.context import LocalContext
from ray_sassl.train.saving import CheckpointNotWrittenError, CheckpointWriter, copied


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(str(tmp_path), "name: tiny\n", keep=3)
    yield writer
    writer.close()


def test_training_continues_while_a_checkpoint_is_written_and_does_not_change_it(writer: CheckpointWriter):
    method, release = Network(), threading.Event()
    before = method.backbone.weight.detach().clone()
    state = {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}}
    writer.save(1, method, state, SeenIds(1), before=release.wait)
    assert not writer.has_failed()
    with torch.no_grad():
        method.backbone.weight.zero_()
        state["optimizer"]["state"][0]["momentum_buffer"].zero_()
        state["optimizer"]["param_groups"][0]["lr"] = 7.0
    release.set()
    writer.wait()
    checkpoint = latest_checkpoint(writer._run_dir)
    assert checkpoint is not None
    assert torch.equal(checkpoint.backbone["weight"], before)
    assert torch.equal(checkpoint.state["optimizer"]["state"][0]["momentum_buffer"], torch.ones(3))
    assert checkpoint.state["optimizer"]["param_groups"] == [{"lr": 0.1}]


def test_at_most_one_checkpoint_is_pending(writer: CheckpointWriter):
    release, second = threading.Event(), threading.Event()
    writer.save(1, Network(), {}, SeenIds(1), before=release.wait)

    def save_another() -> None:
        writer.save(2, Network(), {}, SeenIds(1))
        second.set()

    thread = threading.Thread(target=save_another)
    thread.start()
    assert not second.wait(0.3)
    release.set()
    assert second.wait(20)
    thread.join()
    writer.wait()
    assert [step for step, _ in list_checkpoints(writer._run_dir)] == [1, 2]


def test_a_checkpoint_that_cannot_be_written_is_an_error_with_the_last_whole_one(writer: CheckpointWriter, tmp_path: Path):
    writer.save(1, Network(), {}, SeenIds(1))
    writer.wait()
    (tmp_path / "checkpoints" / "step-00000002").write_text("in the way")
    writer.save(2, Network(), {}, SeenIds(1))
    with pytest.raises(
        CheckpointNotWrittenError, match=r"step 2 could not be written to .*step-00000002: .*The last whole one is .*step-00000001\."
    ):
        writer.save(3, Network(), {}, SeenIds(1))
    writer.save(3, Network(), {}, SeenIds(1))
    writer.wait()
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [1, 3]


def test_a_copy_shares_no_memory_and_keeps_the_layout():
    tensor = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copy = copied({"a": [tensor, (1, "x")]})
    assert copy["a"][1] == (1, "x")
    assert copy["a"][0].data_ptr() != tensor.data_ptr()
    assert copy["a"][0].stride() == tensor.stride()
    assert torch.equal(copy["a"][0], tensor)


@contextmanager
def _no_room() -> Iterator[None]:
    """No file of this process may grow beyond 4 kB: the kernel cuts the write off, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_with_a_clear_error_and_the_last_checkpoint_stays_whole(tiny_config, run_here, tmp_path):
    config = tiny_config("simclr", "train.checkpoint_every=2", "train.keep_checkpoints=9")
    run_here(config, tmp_path, LocalContext(stop_at_step=3))
    with _no_room(), pytest.raises(CheckpointNotWrittenError, match=r"step 4 could not be written .*File too large.*step-00000003"):
        run_here(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert [read_checkpoint(path).step for _, path in list_checkpoints(str(tmp_path))] == [2, 3]
    resumed = run_here(config, tmp_path)
    assert (resumed.outcome.status, resumed.outcome.step) == ("finished", 6)


def test_a_machine_that_is_about_to_go_away_is_left_with_a_checkpoint_at_once(tiny_config, run_here, tmp_path):
    config = tiny_config("simclr", "train.keep_checkpoints=9")
    run = run_here(config, tmp_path, LocalContext(leave_at_step=3))
    assert run.outcome.status == "finished"
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [3, 6]
