"""The same readers and writers on an object store, here moto's S3 server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.convert import convert_shard, open_target, plan_conversion
from ray_sassl.data.reading import build_index, cached_index, read_groups
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from tests.flaky_store import s3_options, s3_server

pytestmark = pytest.mark.slow

JPEG = b"\xff\xd8\xff"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as address:
        yield f"s3://bucket{s3_options(address)}"


@pytest.fixture
def source(tmp_path: Path) -> DataConfig:
    for row in range(10):
        path = tmp_path / "ab"[row % 2] / f"{row}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(JPEG + bytes([row]))
    return DataConfig(path=str(tmp_path))


def test_files_are_written_listed_moved_and_removed(bucket: str):
    path = storage.join(bucket, "run", "a.txt")
    storage.write_text(path, "hello")
    assert storage.read_text(path) == "hello"
    assert [entry.path for entry in storage.list_dir(storage.join(bucket, "run"))] == [path]
    storage.move(storage.join(bucket, "run"), storage.join(bucket, "moved"))
    assert storage.read_text(storage.join(bucket, "moved", "a.txt")) == "hello"
    storage.remove(storage.join(bucket, "moved"))
    assert not storage.exists(storage.join(bucket, "moved", "a.txt"))


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_shards_are_written_to_and_read_from_an_object_store(bucket: str, source: DataConfig, format_):
    local = build_index(source)
    target = storage.join(bucket, "converted", format_)
    conversion = plan_conversion(local, format_, shard_rows=4)
    for shard in open_target(target, conversion):
        convert_shard(local, conversion, target, shard)
    assert open_target(target, conversion) == []
    config = DataConfig(path=target)
    index = cached_index(config, storage.join(bucket, f"{format_}.index"))
    assert read_groups(index, range(index.num_groups)).encoded == read_groups(local, [0]).encoded
    assert cached_index(config, storage.join(bucket, f"{format_}.index")).fingerprint == index.fingerprint
    glob = storage.join(bucket, "converted", format_, "shard-00000[01].*")
    assert build_index(DataConfig(path=glob)).num_rows == 8


def test_a_folder_of_images_with_classes_is_read_from_an_object_store(bucket: str, source: DataConfig):
    local = build_index(source)
    for name in ("a/0.jpg", "b/1.jpg"):
        storage.write_bytes(storage.join(bucket, "images", *name.split("/")), (Path(local.root) / name).read_bytes())
    index = build_index(DataConfig(path=storage.join(bucket, "images")))
    rows = read_groups(index, [0])
    assert index.class_names == ("a", "b")
    assert sorted(zip(rows.encoded, rows.label.tolist(), strict=True)) == [(JPEG + b"\0", 0), (JPEG + b"\1", 1)]


def test_what_is_not_there_is_a_clear_error(bucket: str):
    with pytest.raises(UsageError, match="does not exist"):
        build_index(DataConfig(path=storage.join(bucket, "nothing")))
