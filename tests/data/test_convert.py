import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.convert import ShardFormat, convert_shard, load_bad_rows, open_target, plan_conversion
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.process.errors import UsageError

JPEG = b"\xff\xd8\xff"


def _source(tmp_path: Path, num_rows: int = 10, bad: tuple[int, ...] = ()) -> Index:
    for row in range(num_rows):
        path = tmp_path / "source" / "ab"[row % 2] / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GIF89a" if row in bad else JPEG + bytes([row]))
    return build_index(DataConfig(path=str(tmp_path / "source")))


def _convert(index: Index, target: Path, format_: ShardFormat, shard_rows: int = 4) -> list[int]:
    conversion = plan_conversion(index, format_, shard_rows)
    missing = open_target(str(target), conversion)
    for shard in missing:
        convert_shard(index, conversion, str(target), shard)
    return missing


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_bytes_labels_and_order_are_kept(tmp_path: Path, format_: ShardFormat):
    source = _source(tmp_path)
    _convert(source, tmp_path / "out", format_)
    copy = build_index(DataConfig(path=str(tmp_path / "out")))
    assert (copy.format, copy.num_files) == (format_, 3)
    one, other = (read_groups(index, range(index.num_groups)) for index in (source, copy))
    assert one.encoded == other.encoded
    assert np.array_equal(one.label, other.label)
    assert sorted(one.label.tolist()) == [0] * 5 + [1] * 5


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_a_conversion_continues_with_the_missing_shards(tmp_path: Path, format_: ShardFormat):
    source = _source(tmp_path)
    assert _convert(source, tmp_path / "out", format_) == [0, 1, 2]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    next((tmp_path / "out").glob("shard-000001.*")).unlink()
    assert _convert(source, tmp_path / "out", format_) == [1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_other_settings_or_another_source_are_refused(tmp_path: Path):
    source = _source(tmp_path)
    _convert(source, tmp_path / "out", "parquet")
    with pytest.raises(UsageError, match="shard_rows was 4 and is 5"):
        _convert(source, tmp_path / "out", "parquet", shard_rows=5)
    with pytest.raises(UsageError, match="source_fingerprint was"):
        _convert(_source(tmp_path, num_rows=11), tmp_path / "out", "parquet")


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path):
    source = _source(tmp_path)
    with pytest.raises(UsageError, match=r"is not empty and has no conversion\.json"):
        _convert(source, tmp_path / "source", "parquet")


def test_rows_that_are_no_images_are_left_out_and_listed(tmp_path: Path):
    _convert(_source(tmp_path, bad=(2, 3)), tmp_path / "out", "webdataset")
    assert build_index(DataConfig(path=str(tmp_path / "out"))).num_rows == 8
    bad = load_bad_rows(str(tmp_path / "out"))
    assert sorted(Path(row.path).name for row in bad) == ["2.jpg", "3.jpg"]
    assert "GIF" in bad[0].reason


def test_unlabeled_images_get_no_labels(tmp_path: Path):
    _source(tmp_path)
    source = build_index(DataConfig(path=str(tmp_path / "source"), label_column=None))
    _convert(source, tmp_path / "parquet", "parquet")
    _convert(source, tmp_path / "tar", "webdataset")
    assert pq.read_schema(tmp_path / "parquet" / "shard-000000.parquet").names == ["image", "key"]
    with tarfile.open(tmp_path / "tar" / "shard-000002.tar") as tar:
        assert tar.getnames() == ["000000008.jpg", "000000009.jpg"]


def test_real_images_survive_both_ways(shared_dir: Path, tmp_path: Path):
    source = build_index(DataConfig(path=str(shared_dir / "data/imagenet-sample/parquet/train-00000.parquet")))
    _convert(source, tmp_path / "tar", "webdataset", shard_rows=80)
    tar = build_index(DataConfig(path=str(tmp_path / "tar")))
    _convert(tar, tmp_path / "parquet", "parquet", shard_rows=150)
    back = build_index(DataConfig(path=str(tmp_path / "parquet")))
    one, other = (read_groups(index, range(index.num_groups)) for index in (source, back))
    assert one.encoded == other.encoded
    assert np.array_equal(one.label, other.label)


def test_a_folder_of_images_keeps_its_files_and_classes(tmp_path: Path):
    source = _source(tmp_path)
    _convert(source, tmp_path / "out", "folder")
    copy = build_index(DataConfig(path=str(tmp_path / "out")))
    assert (copy.format, copy.class_names) == ("folder", source.class_names)
    one, other = (read_groups(index, range(index.num_groups)) for index in (source, copy))
    assert one.encoded == other.encoded
    assert [path.removeprefix(source.root) for path in one.path] == [path.removeprefix(copy.root) for path in other.path]


def test_shards_become_a_folder_with_the_same_labels(tmp_path: Path):
    _convert(_source(tmp_path), tmp_path / "shards", "parquet")
    source = build_index(DataConfig(path=str(tmp_path / "shards")))
    _convert(source, tmp_path / "out", "folder")
    copy = build_index(DataConfig(path=str(tmp_path / "out")))
    assert copy.class_names == ("000000", "000001")
    one, other = (read_groups(index, range(index.num_groups)) for index in (source, copy))
    assert sorted(zip(one.encoded, one.label.tolist(), strict=True)) == sorted(zip(other.encoded, other.label.tolist(), strict=True))


def test_a_folder_continues_with_a_shard_whose_mark_is_missing(tmp_path: Path):
    source = _source(tmp_path)
    assert _convert(source, tmp_path / "out", "folder") == [0, 1, 2]
    (tmp_path / "out" / ".shard-000002.done").unlink()
    assert _convert(source, tmp_path / "out", "folder") == [2]


def test_rows_can_be_changed_on_the_way(tmp_path: Path):
    source = _source(tmp_path)
    conversion = plan_conversion(source, "parquet", 100, change="reversed")
    (shard,) = open_target(str(tmp_path / "out"), conversion)

    def change(rows: Rows) -> tuple[Rows, list[BadRow]]:
        return rows.take(rows.sample_id[1:][::-1]), [rows.bad_row(0, "not wanted")]

    assert len(convert_shard(source, conversion, str(tmp_path / "out"), shard, change)) == 1
    copy = build_index(DataConfig(path=str(tmp_path / "out")))
    assert read_groups(copy, [0]).encoded == read_groups(source, range(source.num_groups)).encoded[:0:-1]
    with pytest.raises(UsageError, match="change was 'reversed' and is None"):
        open_target(str(tmp_path / "out"), plan_conversion(source, "parquet", 100))
