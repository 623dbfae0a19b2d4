"""Features of data sets, as one process makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.exporting import embedding
from ray_sassl.exporting.embedding import (
    MANIFEST,
    Embedder,
    EmbeddingPlan,
    check_same,
    merge_parts,
    open_parts,
    part_name,
    parts_bad_rows,
    parts_of,
    plan_of,
    write_part,
)
from ray_sassl.exporting.encoder import load_encoder
from ray_sassl.process.errors import UsageError
from tests.alive import Alive
from tests.exporting.conftest import MakeRun, write_images

CPU = torch.device("cpu")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_images(tmp_path / "some.parquet", 70, bad=(3, 40))
    return build_index(DataConfig(path=f"{tmp_path}/some.parquet", max_bad_fraction=0.1))


def _features(table: pa.Table) -> np.ndarray:
    return np.stack(table["features"].to_numpy())


@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_image_gets_the_features_that_preprocess_and_encoder_give_it(make_run: MakeRun, index, num_threads, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH_ROWS", 8)
    encoder = load_encoder(make_run())
    rows = read_groups(index, [0, 1, 2, 3])
    alive = Alive(monkeypatch)
    good, features, bad = Embedder(encoder, CPU, num_threads).embed(rows, 10**6)
    assert alive.most <= num_threads
    assert good == [row for row in range(70) if row not in (3, 40)]
    assert [(row.row, row.sample_id) for row in bad] == [(3, 3), (40, 40)]
    images = torch.stack([encoder.preprocess(image) for image in (rows.encoded[at] for at in good) if isinstance(image, bytes)])
    with torch.inference_mode():
        np.testing.assert_allclose(features, encoder(images).numpy(), atol=1e-5)


def test_a_batch_that_memory_does_not_suffice_for_is_halved(make_run: MakeRun, index, monkeypatch):
    embedder = Embedder(load_encoder(make_run()), CPU, 1)
    rows = read_groups(index, [0, 1])
    expected = embedder.embed(rows, 10**6)[1]
    forward, sizes = embedder.encoder.forward, []

    def small_memory(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 6:
            raise torch.OutOfMemoryError("no")
        return forward(images)

    monkeypatch.setattr(embedder.encoder, "forward", small_memory)
    np.testing.assert_allclose(embedder.embed(rows, 10**6)[1], expected, atol=1e-5)
    assert max(sizes) > 6
    assert sizes[-1] <= 6


def test_a_part_names_its_rows_and_says_what_they_come_from(make_run: MakeRun, index, tmp_path: Path):
    encoder = load_encoder(make_run())
    plan = EmbeddingPlan.of(index, encoder.facts, 40)
    table, bad = Embedder(encoder, CPU, 1).part(index, plan, [2, 3])
    assert table.column_names == ["sample_id", "key", "label", "features"]
    assert table["sample_id"].to_pylist() == [row for row in range(40, 70) if row != 40]
    assert table["label"].to_pylist() == [row % 3 for row in range(41, 70)]
    assert table["key"][0].as_py() == "some.parquet#41"
    assert [row.row for row in bad] == [40]
    write_part(str(tmp_path / "parts"), 1, table, bad)
    path = str(tmp_path / "parts" / part_name(1))
    assert pq.read_table(path).equals(table)
    found = plan_of(path)
    assert found is not None
    assert found == plan.tree
    assert found["encoder"]["weights_sha256"] == encoder.facts.weights_sha256
    assert [row.sample_id for row in parts_bad_rows(str(tmp_path / "parts"))] == [40]


def test_unlabeled_data_have_no_column_of_labels(make_run: MakeRun, tmp_path: Path):
    write_images(tmp_path / "plain.parquet", 5, labeled=False)
    index = build_index(DataConfig(path=f"{tmp_path}/plain.parquet", label_column=None))
    encoder = load_encoder(make_run())
    table, _ = Embedder(encoder, CPU, 1).part(index, EmbeddingPlan.of(index, encoder.facts), [0])
    assert table.column_names == ["sample_id", "key", "features"]


def test_parts_are_whole_row_groups_that_cover_every_row_once(index):
    for part_rows in (1, 20, 33, 1000):
        parts = parts_of(index, part_rows)
        assert [group for groups in parts for group in groups] == list(range(index.num_groups))
        assert all(index.group_rows[groups].sum() < part_rows + index.group_rows.max() for groups in parts)


def test_a_folder_continues_the_same_job_and_refuses_another(make_run: MakeRun, index, tmp_path: Path):
    encoder = load_encoder(make_run())
    plan, folder = EmbeddingPlan.of(index, encoder.facts, 20), str(tmp_path / "out")
    assert open_parts(folder, plan) == [0, 1, 2, 3]
    write_part(folder, 2, plan.schema.empty_table(), [])
    moved = EmbeddingPlan.of(index, encoder.facts.model_copy(update={"source": "s3://elsewhere", "experiment": "renamed"}), 20)
    assert open_parts(folder, moved) == [0, 1, 3]
    for name, facts, part_rows in (
        ("size_px was 16 and is 24", encoder.facts.model_copy(update={"size_px": 24}), 20),
        ("weights_sha256 was", encoder.facts.model_copy(update={"weights_sha256": "0"}), 20),
        ("part_rows was 20 and is 30", encoder.facts, 30),
    ):
        with pytest.raises(UsageError, match=f"contains other features: {name}"):
            open_parts(folder, EmbeddingPlan.of(index, facts, part_rows))
    with pytest.raises(UsageError, match=r"is not empty and has no embedding\.json"):
        open_parts(str(tmp_path), plan)
    with pytest.raises(UsageError, match="data_fingerprint was None"):
        check_same({}, plan, "x")


def test_merged_parts_are_one_table_in_the_order_of_the_ids(make_run: MakeRun, index, tmp_path: Path):
    encoder = load_encoder(make_run())
    plan, folder = EmbeddingPlan.of(index, encoder.facts, 20), str(tmp_path / "out")
    embedder = Embedder(encoder, CPU, 1)
    for part in reversed(open_parts(folder, plan)):
        write_part(folder, part, *embedder.part(index, plan, parts_of(index, 20)[part]))
    merge_parts(folder, plan, str(tmp_path / "all.parquet"))
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["sample_id"].to_pylist() == [row for row in range(70) if row not in (3, 40)]
    whole, _ = embedder.part(index, plan, [0, 1, 2, 3])
    np.testing.assert_allclose(_features(table), _features(whole), atol=1e-5)
    assert plan_of(str(tmp_path / "all.parquet")) == json.loads((tmp_path / "out" / MANIFEST).read_text())
