"""No error of a run's end hides the one that ended it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.process.ending import told
from ray_sassl.process.errors import UsageError
from ray_sassl.style.weights import MissingWeightsError
from ray_sassl.train.saving import CheckpointNotWrittenError
from tests.orchestrate.conftest import small_config, write_shards


def test_a_summary_that_finds_no_room_does_not_hide_the_checkpoint_that_found_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = apply_overrides(small_config(write_shards(tmp_path), num_workers=0, epochs=0.4), ["evaluate.train=null"])
    with monkeypatch.context() as patch:
        patch.setattr("ray_sassl.orchestrate.pretraining.launch.write_summary", full)
        with pytest.raises(UsageError, match=r"finished at step 4, but could not write summary\.json: .*No space left"):
            pretrain(config, str(tmp_path / "finished"))
        patch.setattr("ray_sassl.train.saving.write_checkpoint", full)
        with pytest.raises(CheckpointNotWrittenError) as error:
            pretrain(config, str(tmp_path / "run"))
    assert "the checkpoint of step 4 could not be written" in str(error.value)
    assert "After that, could not write summary.json" in told(error.value)


def test_missing_weights_are_told_before_the_data_are_looked_through(tmp_path: Path):
    config = apply_overrides(
        small_config(str(tmp_path / "nothing"), num_workers=0), ["views.size_px=32", "stylize=magenta", "evaluate.train=null"]
    )
    with pytest.raises(MissingWeightsError, match="`ray-sassl weights fetch magenta` downloads them"):
        pretrain(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
