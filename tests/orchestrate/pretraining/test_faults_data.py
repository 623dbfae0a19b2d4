"""Shards that are cut, vanish or change, in whole runs: exactly the bad rows are named, and what cannot be continued exactly is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.process.errors import UsageError
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards

pytestmark = pytest.mark.slow

HALF = NUM_ROWS // 2


def _config(path: str, *overrides: str, max_bad_fraction: float = 0.6) -> ExperimentConfig:
    base = small_config(path, epochs=2, num_workers=0, max_bad_fraction=max_bad_fraction)
    return apply_overrides(base, ["evaluate.train=null", "evaluate.test=null", "train.log_every=1", *overrides])


def _quarantine(run_dir: Path) -> dict[int, str]:
    lines = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    return {line["sample_id"]: line["path"] for line in lines}


def _once(action):
    """A watch that acts at the first reported step."""
    todo = [action]

    def watch(update: ProgressUpdate) -> None:
        if update.reports and todo:
            todo.pop()()

    return watch


def test_one_image_in_a_hundred_that_is_none_is_quarantined_and_named_and_the_run_ends_well(tmp_path: Path):
    result = pretrain(_config(write_shards(tmp_path, bad=(3, 90)), max_bad_fraction=0.02), str(tmp_path / "run"))
    assert result.status == "finished"
    assert _quarantine(tmp_path / "run") == {3: str(tmp_path / "train-0.parquet"), 90: str(tmp_path / "train-1.parquet")}


def test_a_shard_that_vanishes_during_the_run_is_quarantined_row_by_row(tmp_path: Path):
    path = write_shards(tmp_path)
    result = pretrain(_config(path), str(tmp_path / "run"), watch=_once((tmp_path / "train-1.parquet").unlink))
    assert result.status == "finished"
    assert _quarantine(tmp_path / "run") == dict.fromkeys(range(HALF, NUM_ROWS), str(tmp_path / "train-1.parquet"))


def test_a_shard_that_vanishes_is_named_where_that_is_more_than_may_be_bad(tmp_path: Path):
    path = write_shards(tmp_path)
    with pytest.raises(TooManyBadRowsError, match=r"train-1\.parquet row \d+: the file is gone"):
        pretrain(_config(path, max_bad_fraction=0.05), str(tmp_path / "run"), watch=_once((tmp_path / "train-1.parquet").unlink))


@pytest.mark.parametrize("how", ["cut in half", "written anew", "touched"])
def test_a_shard_that_changes_during_the_run_is_refused_by_name(tmp_path: Path, how: str):
    path = write_shards(tmp_path)
    shard = tmp_path / "train-1.parquet"

    def change() -> None:
        if how == "cut in half":
            shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        elif how == "written anew":
            shard.write_bytes((tmp_path / "train-0.parquet").read_bytes() + b" ")
        else:
            shard.touch()

    with pytest.raises(UsageError, match=r"train-1\.parquet has changed since the index was built"):
        pretrain(_config(path), str(tmp_path / "run"), watch=_once(change))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "train-1.parquet" in summary["reason"]


def test_a_parquet_shard_that_was_cut_before_the_run_is_refused_by_name(tmp_path: Path):
    path = write_shards(tmp_path)
    shard = tmp_path / "train-1.parquet"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"train-1\.parquet cannot be read as Parquet"):
        pretrain(_config(path), str(tmp_path / "run"))


def _write_tar(path: Path, first: int, count: int) -> list[int]:
    """A shard of small images; the places where each sample ends."""
    draws, ends = np.random.default_rng(first), []
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            out = io.BytesIO()
            Image.fromarray(draws.integers(0, 256, (20, 24, 3), np.uint8)).save(out, "PNG")
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(out.getvalue())
            tar.addfile(member, io.BytesIO(out.getvalue()))
            ends.append(tar.offset)
    return ends


def test_a_tar_shard_that_was_cut_in_half_keeps_its_whole_samples_and_the_cut_is_named(tmp_path: Path):
    _write_tar(tmp_path / "a.tar", 0, 60)
    shard = tmp_path / "b.tar"
    ends = _write_tar(shard, 60, 60)
    size = ends[-1] // 2 + 700
    shard.write_bytes(shard.read_bytes()[:size])
    whole = sum(end <= size for end in ends)
    result = pretrain(_config(str(tmp_path / "*.tar"), "data.label_column=null"), str(tmp_path / "run"))
    assert result.status == "finished"
    bad = _quarantine(tmp_path / "run")
    assert set(bad.values()) == {str(shard)}
    assert set(bad) <= {-1, 60 + whole}
    assert -1 in bad
    assert result.step == 2 * (60 + whole) // 16
