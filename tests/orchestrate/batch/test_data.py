from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ray_sassl.cli.data import app
from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.data.shuffle import new_places
from ray_sassl.orchestrate.batch.data import check, convert
from ray_sassl.orchestrate.runtime import scanning
from ray_sassl.process.errors import UsageError
from tests.orchestrate.conftest import write_held_shards, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_check_finds_the_one_bad_image_and_no_other(shared_dir: Path):
    result = check(DataConfig(path=str(shared_dir / "data/decode-odd")), show_progress=False)
    assert result.num_rows == 5
    (bad,) = result.bad_rows
    assert Path(bad.path).name == "truncated_jpeg.jpg"
    assert "truncated" in bad.reason


def test_convert_copies_every_byte_and_goes_on_where_it_was_stopped(shared_dir: Path, tmp_path: Path):
    config = DataConfig(path=str(shared_dir / "data/imagenet-sample/parquet"))
    first = convert(config, str(tmp_path), "webdataset", shard_rows=300, show_progress=False)
    assert (first.num_rows, first.num_shards, first.num_written, first.bad_rows) == (800, 3, 3, [])
    (tmp_path / "shard-000001.tar").unlink()
    assert convert(config, str(tmp_path), "webdataset", shard_rows=300, show_progress=False).num_written == 1
    one, other = build_index(config), build_index(DataConfig(path=str(tmp_path)))
    rows, copies = (read_groups(index, range(index.num_groups)) for index in (one, other))
    assert rows.encoded == copies.encoded
    assert np.array_equal(rows.label, copies.label)


def test_a_shuffle_on_a_cluster_writes_each_row_once_and_goes_on(shared_dir: Path, tmp_path: Path):
    config = DataConfig(path=str(shared_dir / "data/imagenet-sample/parquet"))
    how: dict[str, Any] = {"shard_rows": 300, "shuffle": 7, "memory_gb": 0.2, "show_progress": False}
    first = convert(config, str(tmp_path), "parquet", **how)
    assert (first.num_rows, first.num_shards, first.num_written, first.bad_rows) == (800, 3, 3, [])
    assert convert(config, str(tmp_path), "parquet", **how).num_written == 0
    one, other = build_index(config), build_index(DataConfig(path=str(tmp_path)))
    rows, copies = (read_groups(index, range(index.num_groups)) for index in (one, other))
    order = new_places(800, 7).argsort()
    assert copies.encoded == rows.at(order).encoded
    assert np.array_equal(copies.label, rows.label[order])
    with pytest.raises(UsageError, match="shuffle was 7 and is 8"):
        convert(config, str(tmp_path), "parquet", **{**how, "shuffle": 8})
    found = CliRunner().invoke(app, ["mixing", str(tmp_path), "--batch", "50"], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "labels in a batch" in found.output


def test_an_error_of_the_user_in_a_task_arrives_without_the_traceback_of_ray(tmp_path: Path):
    for number in range(3):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / f"{number}.jpg").write_bytes(b"GIF89a")
    with pytest.raises(UsageError, match=r"^3 of 3 rows .* cannot be used"):
        convert(DataConfig(path=str(tmp_path / "source")), str(tmp_path / "out"), "parquet", show_progress=False)


def test_the_commands_print_tables_and_check_fails_on_bad_rows(shared_dir: Path, tmp_path: Path):
    odd = str(shared_dir / "data/decode-odd")
    run = CliRunner().invoke(app, ["check", odd, "--out", str(tmp_path / "bad.jsonl")])
    assert run.exit_code == 1
    assert "1 bad rows of 5 rows" in run.output
    assert "truncated_jpeg.jpg" in (tmp_path / "bad.jsonl").read_text()
    run = CliRunner().invoke(app, ["inspect", odd, "--out", str(tmp_path / "sheet.png")])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    run = CliRunner().invoke(app, ["convert", odd, str(tmp_path / "out"), "--format", "parquet"])
    assert run.exit_code == 0, run.output
    assert "5 rows in 1 shards" in run.output


def test_check_counts_the_images_that_are_in_another_data_set_too(tmp_path: Path):
    write_shards(tmp_path)
    write_held_shards(tmp_path)
    run = CliRunner().invoke(app, ["check", f"{tmp_path}/train-0.parquet", "--overlap", f"{tmp_path}/held"], env={"COLUMNS": "300"})
    assert run.exit_code == 1
    assert "All 80 images are good" in run.output
    assert f"80 of 160 images in {tmp_path}/held are in {tmp_path}/train-0.parquet too, byte by byte" in run.output
    assert "train-0.parquet#3" in run.output
    assert "and 60 more" in run.output
    run = CliRunner().invoke(app, ["check", f"{tmp_path}/train-0.parquet", "--overlap", f"{tmp_path}/train-1.parquet"])
    assert run.exit_code == 0, run.output


def test_shards_are_scanned_by_tasks_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(40):
        pq.write_table(pa.table({"image": [b"x"] * (number + 1), "label": [number] * (number + 1)}), tmp_path / f"{number:02d}.parquet")
    config, done = DataConfig(path=str(tmp_path)), []
    monkeypatch.setattr(scanning, "FEW_SHARDS", 10)
    index = build_index(config, each=scanning.Scanning(show_progress=False), progress=lambda number, total: done.append((number, total)))
    assert index.group_rows.tolist() == list(range(1, 41))
    assert done == [(number, 40) for number in range(1, 41)]
    assert index.fingerprint == build_index(config).fingerprint
    pq.write_table(pa.table({"other": [1]}), tmp_path / "17.parquet")
    with pytest.raises(UsageError, match=r"17\.parquet has no image column"):
        scanning.index_of(config, show_progress=False)
