"""Features of data sets on a pool of actors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.cli import app
from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.data.reading import build_index
from ray_sassl.exporting.embedding import Embedder, EmbeddingPlan
from ray_sassl.exporting.encoder import Encoder, EncoderFacts, encoder_bytes
from ray_sassl.nn.digest import weights_sha256
from ray_sassl.orchestrate.batch import embed
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
from ray_sassl.orchestrate.batch.embed import embed_dataset
from ray_sassl.process.errors import UsageError
from tests.orchestrate.conftest import NUM_ROWS, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

POOL = ActorPoolConfig(num_actors=2, num_cpus=0.5)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = BackboneConfig(name="resnet20")
    backbone, num_features = build_backbone(config)
    facts = EncoderFacts(
        backbone=config,
        num_features=num_features,
        size_px=16,
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.2,) * 3,
        experiment="drawn",
        source="nowhere",
        step=0,
        weights_sha256=weights_sha256(backbone),
        version="0",
    )
    return Encoder(backbone, facts)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    (tmp_path / "data").mkdir()
    return DataConfig(path=write_shards(tmp_path / "data", bad=(7, 90)), max_bad_fraction=0.05)


def _embed(encoder: Encoder, data: DataConfig, out: Path, **options):
    return embed_dataset(encoder, data, str(out), POOL, show_progress=False, **{"part_rows": 40, **options})


def test_a_file_holds_every_good_row_in_order_with_the_features_of_one_process(ray_cluster: None, encoder, data, tmp_path: Path):
    out = tmp_path / "features.parquet"
    result = _embed(encoder, data, out)
    assert (result.num_rows, result.num_features, result.num_parts, result.num_made, result.num_made_rows) == (
        NUM_ROWS - 2,
        64,
        4,
        4,
        NUM_ROWS,
    )
    assert [row.sample_id for row in result.bad_rows] == [7, 90]
    assert result.bad_rows_path == f"{out}.bad.jsonl"
    assert Path(result.bad_rows_path).read_text().count("\n") == 2
    assert not Path(f"{out}.parts").exists()
    table = pq.read_table(out)
    index = build_index(data)
    here, _ = Embedder(encoder, torch.device("cpu"), 1).part(
        index, EmbeddingPlan.of(index, encoder.facts, 40), list(range(index.num_groups))
    )
    assert table["sample_id"].to_pylist() == here["sample_id"].to_pylist() == [row for row in range(NUM_ROWS) if row not in (7, 90)]
    assert table["key"].equals(here["key"])
    assert table["label"].to_pylist()[-1] == NUM_ROWS // 2 - 1
    np.testing.assert_allclose(np.stack(table["features"].to_numpy()), np.stack(here["features"].to_numpy()), atol=1e-5)
    exported = tmp_path / "model.safetensors"
    exported.write_bytes(encoder_bytes(encoder))
    args = ["embed", str(exported), str(data.path), "--out", str(out), "--part-rows", "40", "--max-bad-fraction", "0.05"]
    again = CliRunner(env={"COLUMNS": "300"}).invoke(app, args, catch_exceptions=False)
    assert "2 bad rows left out" in again.output
    assert f"158 images with 64 features each in {out}: 0 parts made now, 4 were there already" in again.output


def test_a_job_that_was_stopped_makes_only_what_is_missing(ray_cluster: None, encoder, data, tmp_path: Path, monkeypatch):
    whole = tmp_path / "whole"
    _embed(encoder, data, whole)
    out = tmp_path / "stopped"
    write = embed.write_part

    def write_once(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "write_part", write_once)
    with pytest.raises(KeyboardInterrupt):
        _embed(encoder, data, out)
    monkeypatch.undo()
    result = _embed(encoder, data, out)
    assert (result.num_parts, result.num_made) == (4, 3)
    assert [row.sample_id for row in result.bad_rows] == [7, 90]
    names = sorted(path.name for path in whole.glob("*.parquet"))
    assert names == sorted(path.name for path in out.glob("*.parquet")) == [f"part-00000{part}.parquet" for part in range(4)]
    for name in names:
        ours, theirs = pq.read_table(out / name), pq.read_table(whole / name)
        assert ours.drop_columns("features").equals(theirs.drop_columns("features"))
        np.testing.assert_allclose(np.stack(ours["features"].to_numpy()), np.stack(theirs["features"].to_numpy()), atol=1e-5)


def test_too_many_bad_rows_end_the_job_with_their_names(ray_cluster: None, encoder, tmp_path: Path):
    data = DataConfig(path=write_shards(tmp_path, bad=tuple(range(30))))
    with pytest.raises(TooManyBadRowsError, match=r"train-0\.parquet row \d+: not a JPEG"):
        _embed(encoder, data, tmp_path / "features.parquet")


def test_the_features_of_another_encoder_are_not_written_over(encoder, data, tmp_path: Path):
    out = tmp_path / "features.parquet"
    index = build_index(data)
    plan = EmbeddingPlan.of(index, encoder.facts, 40)
    pq.write_table(plan.schema.empty_table(), out)
    assert _embed(encoder, data, out).num_made == 0
    other = Encoder(encoder.backbone, encoder.facts.model_copy(update={"size_px": 32}))
    with pytest.raises(UsageError, match="contains other features: size_px was 16 and is 32"):
        _embed(other, data, out)
    foreign = tmp_path / "foreign.parquet"
    shutil.copy(next((tmp_path / "data").glob("*.parquet")), foreign)
    with pytest.raises(UsageError, match="contains other features: weights_sha256 was None"):
        _embed(encoder, data, foreign)
