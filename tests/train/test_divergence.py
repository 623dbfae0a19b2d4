"""A loss that is not a number: found at its step, with the samples and the checkpoint to go back to."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_sassl.nn.method import StepOutput
from ray_sassl.train.checkpoint import read_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints
from ray_sassl.train.config import TrainConfig
from ray_sassl.train.context import LocalContext
from ray_sassl.train.divergence import DIVERGED, DivergedError, DivergenceWatch
from ray_sassl.train.loop import Job, train
from ray_sassl.types import Arrays
from tests.train.test_loop import SGD, Linear, _batches

POISONED = 9


class Poisoned(Linear):
    """A method whose loss is not a number where one sample is in the batch."""

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        output = super().forward(views, generator, sample_id)
        assert sample_id is not None
        poison = torch.where(sample_id == POISONED, math.nan, 0.0).sum()
        return StepOutput(output.loss + poison, output.embeddings, output.chance_loss)


def _run(run_dir: Path, **config: Any) -> None:
    settings = TrainConfig(**{"epochs": 1, "global_batch": 4, "log_every": 100, "pixel_std": (1, 1, 1), **config})
    train(Job(Poisoned(), _batches(24, 4), settings, SGD, 24, 0, str(run_dir), "", LocalContext()))


def test_the_run_stops_at_the_step_and_names_the_samples_and_the_last_good_checkpoint(tmp_path: Path):
    with pytest.raises(DivergedError) as error:
        _run(tmp_path, checkpoint_every=1)
    told = str(error.value)
    assert "the loss is nan at step 3 (learning rate 0.075), on samples 8, 9, 10, 11 of epoch 0" in told
    assert "The last good checkpoint is" in told
    assert [step for step, _ in list_checkpoints(str(tmp_path))] == [1, 2]
    record = json.loads((tmp_path / DIVERGED).read_text())
    assert (record["step"], record["loss"], record["sample_ids"], record["epochs"]) == (3, "nan", [8, 9, 10, 11], [0] * 4)
    assert read_checkpoint(record["checkpoint"]).step == 2


def test_without_a_checkpoint_it_says_so(tmp_path: Path):
    with pytest.raises(DivergedError, match="No checkpoint was written before it"):
        _run(tmp_path, checkpoint_every=100)


def test_a_device_that_is_not_waited_for_is_asked_at_the_next_look_and_the_first_bad_step_is_named():
    watch = DivergenceWatch(torch.device("cpu"), every_step=False)
    for step, loss in enumerate((1.0, math.inf, math.nan, math.nan), start=1):
        rows: Arrays = {"epoch": np.zeros(2, np.int64), "sample_id": np.array([10 * step, 10 * step + 1])}
        watch.note(step, [torch.tensor(loss)], [rows])
        assert not watch.has_seen_one(look=False)
    assert watch.has_seen_one(look=True)
    bad = watch.bad_step()
    assert (bad.step, bad.loss, bad.sample_ids) == (2, "inf", [20, 21])


def test_a_full_disk_does_not_hide_the_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ray_sassl.train.saving.write_checkpoint", full)
    monkeypatch.setattr("ray_sassl.train.divergence.storage.write_text", full)
    with pytest.raises(DivergedError, match="the loss is nan at step 3") as error:
        _run(tmp_path, checkpoint_every=2)
    also = "\n".join(error.value.__notes__)
    assert "could not write diverged.json: [Errno 28] No space left" in also
    assert "the checkpoint of step 2 could not be written" in also
