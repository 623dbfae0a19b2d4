import os
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import all_labels, all_names, build_index, cached_index, read_groups, read_runs
from ray_sassl.process.errors import UsageError


def _write(path: Path, num_rows: int = 10, group_rows: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [f"{path.name} {row}".encode() for row in range(num_rows)]
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(range(num_rows), pa.int32())}), path, row_group_size=group_rows
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a", "c"):
        _write(tmp_path / "shards" / f"{name}.parquet")
    return tmp_path / "shards"


def test_rows_are_numbered_through_the_sorted_files(folder: Path):
    index = build_index(DataConfig(path=str(folder)))
    assert (index.num_rows, index.num_groups, index.num_files) == (30, 9, 3)
    assert index.group_rows.tolist() == [4, 4, 2] * 3
    assert index.group_first.tolist() == [0, 4, 8, 10, 14, 18, 20, 24, 28]
    rows = read_groups(index, [5, 0])
    assert rows.sample_id.tolist() == [18, 19, 0, 1, 2, 3]
    assert rows.encoded[0] == b"b.parquet 8"
    assert rows.key[0] == f"{folder}/b.parquet#8"
    assert rows.row.tolist() == [8, 9, 0, 1, 2, 3]
    assert rows.label.tolist() == [8, 9, 0, 1, 2, 3]


def test_the_index_does_not_depend_on_the_number_of_threads(folder: Path):
    one, many = (build_index(DataConfig(path=str(folder)), num_threads=threads) for threads in (1, 8))
    assert one.fingerprint == many.fingerprint
    assert one.groups.equals(many.groups)


def test_progress_counts_the_files(folder: Path):
    seen: list[tuple[int, int]] = []
    build_index(DataConfig(path=str(folder)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_saved_index_is_loaded_as_it_was(folder: Path, tmp_path: Path):
    index = build_index(DataConfig(path=str(folder)))
    index.save(tmp_path / "index.arrow")
    loaded = Index.load(tmp_path / "index.arrow")
    assert loaded.config == index.config
    assert loaded.fingerprint == index.fingerprint
    assert read_groups(loaded, [4]).encoded == read_groups(index, [4]).encoded


def test_an_index_travels_to_other_processes(folder: Path):
    index = build_index(DataConfig(path=str(folder)))
    assert index.num_rows == 30
    copy = pickle.loads(pickle.dumps(index))
    assert read_groups(copy, [8]).encoded == read_groups(index, [8]).encoded


def test_a_changed_a_removed_and_a_new_file_are_noticed(folder: Path):
    index = build_index(DataConfig(path=str(folder)))
    assert index.changed_files() == []
    os.utime(folder / "a.parquet", (1, 1))
    (folder / "b.parquet").unlink()
    _write(folder / "d.parquet")
    assert [Path(path).name for path in index.changed_files()] == ["a.parquet", "b.parquet", "d.parquet"]
    assert build_index(DataConfig(path=str(folder))).fingerprint != index.fingerprint


def test_the_cache_is_used_until_a_file_or_the_config_changes(folder: Path, tmp_path: Path):
    cache = tmp_path / "cache" / "index.arrow"
    config = DataConfig(path=str(folder))
    cached_index(config, cache)
    written = cache.stat().st_mtime_ns
    assert cached_index(config.model_copy(update={"block_rows": 7}), cache).config.block_rows == 7
    assert cache.stat().st_mtime_ns == written
    assert cached_index(config.model_copy(update={"label_column": None}), cache).fingerprint != build_index(config).fingerprint
    _write(folder / "c.parquet", num_rows=3)
    assert cached_index(config, cache).num_rows == 23
    cache.write_bytes(cache.read_bytes()[:-100])
    assert cached_index(config, cache).num_rows == 23


def test_a_damaged_index_is_refused(tmp_path: Path):
    (tmp_path / "index.arrow").write_bytes(b"not an index")
    with pytest.raises(UsageError, match="not an index or is damaged"):
        Index.load(tmp_path / "index.arrow")


def test_the_fingerprint_moves_with_the_data(folder: Path, tmp_path: Path):
    before = build_index(DataConfig(path=str(folder))).fingerprint
    folder.rename(tmp_path / "elsewhere")
    assert build_index(DataConfig(path=str(tmp_path / "elsewhere"))).fingerprint == before


def test_no_rows_at_all_is_an_error(tmp_path: Path):
    _write(tmp_path / "a.parquet", num_rows=0)
    with pytest.raises(UsageError, match="has no rows"):
        build_index(DataConfig(path=str(tmp_path)))


def test_webdataset_and_parquet_of_the_same_images_have_the_same_bytes_and_labels(shared_dir: Path):
    sample = shared_dir / "data" / "imagenet-sample"
    parquet, tar = (build_index(DataConfig(path=str(sample / kind))) for kind in ("parquet", "wds"))
    assert parquet.num_rows == tar.num_rows == 800
    one, other = (read_groups(index, range(index.num_groups)) for index in (parquet, tar))
    assert one.encoded == other.encoded
    assert np.array_equal(one.label, other.label)
    assert np.array_equal(one.sample_id, other.sample_id)
    assert np.array_equal(all_labels(parquet), one.label)
    assert np.array_equal(all_labels(tar), one.label)


def test_cifar_is_indexed_whole(shared_dir: Path):
    index = build_index(DataConfig(path=str(shared_dir / "data/cifar10/train-*.parquet")))
    assert (index.num_rows, index.num_groups, index.num_files) == (50_000, 56, 8)
    assert np.bincount(all_labels(index)).tolist() == [5000] * 10


def test_taking_rows_that_are_not_there_is_an_error(folder: Path):
    rows = read_groups(build_index(DataConfig(path=str(folder))), [1])
    assert rows.take(np.array([6, 4])).sample_id.tolist() == [6, 4]
    with pytest.raises(KeyError, match="sample 99"):
        rows.take(np.array([4, 99]))


def test_names_come_from_files_members_or_a_column_and_images_are_not_read(tmp_path: Path):
    for name in ("b/2.jpg", "a/1.png"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(b"no image")
    assert all_names(build_index(DataConfig(path=str(tmp_path / "folder")))) == ["1.png", "2.jpg"]
    table = pa.table({"image": [b"no image"] * 3, "label": [0, 1, 2]})
    pq.write_table(table, tmp_path / "plain.parquet")
    assert all_names(build_index(DataConfig(path=str(tmp_path / "plain.parquet")))) is None
    pq.write_table(table.append_column("key", pa.array(["x", "y", "z"])), tmp_path / "named.parquet", row_group_size=2)
    assert all_names(build_index(DataConfig(path=str(tmp_path / "named.parquet")))) == ["x", "y", "z"]


HOSTILE = {
    "a file that is not there": {"file": [0, 0, 0, 1, 1, 1, 2, 2, 99]},
    "a negative file": {"file": [-1] + [0] * 8},
    "more rows than a file has room for": {"num_rows": [10**12] + [4] * 8},
    "rows below zero": {"num_rows": [-4] + [4] * 8},
    "an end before its beginning": {"stop": [-1] + [1] * 8},
}


@pytest.mark.parametrize("change", HOSTILE)
def test_an_index_whose_tables_do_not_agree_is_refused_before_anything_is_reserved(folder: Path, tmp_path: Path, change: str):
    index = build_index(DataConfig(path=str(folder)))
    columns = {name: HOSTILE[change].get(name, index.groups[name].to_pylist()) for name in index.groups.column_names}
    replace(index, groups=pa.table(columns, schema=index.groups.schema)).save(tmp_path / "index.arrow")
    with pytest.raises(UsageError, match="is damaged"):
        Index.load(tmp_path / "index.arrow")
    assert cached_index(index.config, tmp_path / "index.arrow").num_rows == 30, "it is built again"


def test_an_index_with_tables_of_other_columns_or_facts_of_other_kinds_is_refused(folder: Path, tmp_path: Path):
    index = build_index(DataConfig(path=str(folder)))
    for changes in ({"groups": index.files}, {"files": index.groups}, {"class_names": (1,)}, {"rows": index.files}, {"format": "tar"}):
        replace(index, **changes).save(tmp_path / "index.arrow")
        with pytest.raises(UsageError, match="is damaged"):
            Index.load(tmp_path / "index.arrow")


def test_an_index_may_have_columns_that_this_version_does_not_know(folder: Path, tmp_path: Path):
    index = build_index(DataConfig(path=str(folder)))
    more = index.files.append_column("digest", pa.array([b"x", None, b"y"], pa.binary()))
    replace(index, files=more).save(tmp_path / "index.arrow")
    assert Index.load(tmp_path / "index.arrow").num_rows == 30


@pytest.mark.parametrize("format_", ["parquet", "webdataset", "folder"])
def test_runs_of_rows_are_the_same_rows_as_in_their_groups(tmp_path: Path, format_: str):
    for name in "ab":
        if format_ == "parquet":
            _write(tmp_path / f"{name}.parquet", group_rows=8)
        for row in range(0 if format_ == "parquet" else 10):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{row}.jpg").write_bytes(bytes([row]) * (row + 1))
        if format_ == "webdataset":
            with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
                tar.add(tmp_path / name, ".")
            shutil.rmtree(tmp_path / name)
    index = build_index(DataConfig(path=str(tmp_path)))
    first, length = np.array([index.num_rows - 2, 0, 4, 12]), np.array([2, 2, 1, 6])
    rows = read_runs(index, first, length)
    whole = read_groups(index, range(index.num_groups))
    expected = whole.take(np.concatenate([np.arange(a, a + n) for a, n in zip(first, length, strict=True)]))
    for name in ("encoded", "key", "path"):
        assert getattr(rows, name) == getattr(expected, name)
    for name in ("sample_id", "label", "row"):
        assert np.array_equal(getattr(rows, name), getattr(expected, name))
