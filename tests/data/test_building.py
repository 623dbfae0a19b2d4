"""What an index costs: a worker's memory does not grow with the rows, and what has not changed is not scanned again."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import GROUP_SCHEMA, DataConfig
from ray_sassl.data import building as building_module
from ray_sassl.data.index import FILE_SCHEMA, Index
from ray_sassl.data.reading import all_labels, all_names, build_index, cached_index, kept_index, read_groups
from ray_sassl.process.errors import UsageError

JPEG = b"\xff\xd8\xff"


def _tar(path: Path, names: Sequence[str], label: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            for ending, content in ((".jpg", JPEG + name.encode()), (".cls", str(label).encode())):
                info = tarfile.TarInfo(name + ending)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))


class _Counted:
    """Scans shards, and counts them."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        self.paths += [Path(item.path).name for item in items]
        return map(function, items)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(4):
        _tar(tmp_path / "shards" / f"{number}.tar", [f"{number}-{row}" for row in range(3 + number)], label=number)
    (tmp_path / "shards" / "1.tar").write_bytes((tmp_path / "shards" / "1.tar").read_bytes()[:-9000])
    return tmp_path / "shards"


def test_only_a_changed_and_an_added_shard_are_scanned_again(shards: Path, tmp_path: Path):
    config, cache = DataConfig(path=str(shards)), tmp_path / "index.arrow"
    first = _Counted()
    cached_index(config, cache, each=first)
    assert first.paths == ["0.tar", "1.tar", "2.tar", "3.tar"]
    _tar(shards / "2.tar", ["other-a", "other-b"], label=7)
    _tar(shards / "1b.tar", ["new"], label=8)
    (shards / "3.tar").unlink()
    again = _Counted()
    index = cached_index(config, cache, each=again)
    assert again.paths == ["1b.tar", "2.tar"]
    whole = build_index(config)
    assert (index.fingerprint, index.problems, index.ignored) == (whole.fingerprint, whole.problems, whole.ignored)
    assert index.problems, "of the shard that is cut off, which was not looked at again"
    assert all_names(index) == all_names(whole)
    assert all_labels(index).tolist() == all_labels(whole).tolist()
    one, other = (read_groups(found, range(found.num_groups)) for found in (index, whole))
    assert (one.encoded, one.key) == (other.encoded, other.key)


def test_classes_of_kept_shards_must_agree_with_those_of_new_ones(tmp_path: Path):
    def write(name: str, classes: list[str]) -> None:
        table = pa.table({"image": [JPEG], "label": [0]})
        (tmp_path / "shards").mkdir(exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata({"ray_sassl.class_names": json.dumps(classes)} if classes else None), tmp_path / "shards" / name
        )

    config, cache = DataConfig(path=str(tmp_path / "shards")), tmp_path / "index.arrow"
    write("a.parquet", ["cat", "dog"])
    write("b.parquet", [])
    assert cached_index(config, cache).class_names == ("cat", "dog")
    write("c.parquet", ["cat", "cow"])
    with pytest.raises(UsageError, match=r"a\.parquet and .*c\.parquet name their classes differently \(cow, dog\)"):
        cached_index(config, cache)
    (tmp_path / "shards" / "c.parquet").unlink()
    (tmp_path / "shards" / "a.parquet").unlink()
    assert cached_index(config, cache).class_names == ()


def test_an_index_of_the_compressed_kind_is_read_and_built_again_where_it_is_a_cache(shards: Path, tmp_path: Path):
    index, path = build_index(DataConfig(path=str(shards))), tmp_path / "index.arrow"
    _save_as_before(index, path)
    old = Index.load(path)
    assert (old.fingerprint, old.mapped) == (index.fingerprint, None)
    assert read_groups(old, [0]).encoded == read_groups(index, [0]).encoded
    counted = _Counted()
    assert cached_index(index.config, path, each=counted).mapped is not None
    assert len(counted.paths) == 4


def _save_as_before(index: Index, path: Path) -> None:
    """As version 1 of the file was written."""
    index.save(path)
    with path.open("rb") as file:
        facts = json.loads(pa.ipc.open_stream(file).schema.metadata[b"index"])
    files = index.files.select(FILE_SCHEMA.names).replace_schema_metadata({"index": json.dumps(facts | {"version": "1"})})
    with path.open("wb") as file:
        for table in (files, index.groups, index.rows):
            assert table is not None
            with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)


def test_a_kept_index_is_shared_and_follows_the_data(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    config = DataConfig(path=str(shards))
    assert kept_index(config).fingerprint == kept_index(config.model_copy(update={"block_rows": 7})).fingerprint
    assert len(list((tmp_path / "cache" / "indexes").glob("*.arrow"))) == 1
    (shards / "3.tar").unlink()
    assert kept_index(config).num_files == 3


def test_many_rows_go_through_the_disk_and_are_the_same(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = build_index(DataConfig(path=str(shards)))
    monkeypatch.setattr(building_module, "_IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(building_module, "BATCH_ROWS", 4)
    index = build_index(DataConfig(path=str(shards)))
    assert (plain.mapped, index.mapped is not None) == (None, True)
    assert index.rows is not None
    assert index.rows.equals(plain.rows)
    index.save(tmp_path / "index.arrow")
    assert all_names(Index.load(tmp_path / "index.arrow")) == all_names(plain)


READ = """
import sys
from pathlib import Path
import numpy as np
from ray_sassl.data.index import Index

def peak():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")).split()[1])

Index.load(sys.argv[1])
before = peak()
index = Index.load(sys.argv[2])
for group in np.random.default_rng(0).permutation(index.num_groups)[:400].tolist():
    assert index.rows_of(group).num_rows
    file, start, stop = index.group_place(group)
    index.file_paths(start, stop) if index.format == "folder" else index.file_path(file)
print((peak() - before) * 1024)
"""


def _made_up(format_: Any, rows: int) -> Index:
    """An index of so many rows, without files."""
    starts = np.arange(0, rows, 256)
    num_rows = np.minimum(256, rows - starts)
    number = np.arange(rows)
    names = pa.array([f"n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in number.tolist()])
    if format_ == "folder":
        files = pa.table([names, np.full(rows, 110_000), np.ones(rows, np.int64)], schema=FILE_SCHEMA)
        groups = pa.table([starts.astype(np.int32), starts, starts + num_rows, num_rows], schema=GROUP_SCHEMA)
        return Index(DataConfig(path="/nowhere"), format_, "/nowhere/", files, groups, pa.table({"label": number // 1300}))
    shard = (starts // 2560).astype(np.int32)
    begin = starts % 2560 * 10**5
    groups = pa.table([shard, begin, begin + 256 * 10**5, num_rows], schema=GROUP_SCHEMA)
    shards = [f"{name}.tar" for name in range(int(shard[-1]) + 1)]
    files = pa.table([shards, [10**9] * len(shards), [1] * len(shards)], schema=FILE_SCHEMA)
    samples = pa.table({"key": names, "offset": number % 2560 * 10**5, "size": np.full(rows, 10**5), "label": number // 1300})
    return Index(DataConfig(path="/nowhere"), format_, "/nowhere/", files, groups, samples)


@pytest.mark.parametrize("format_", ["webdataset", "folder"])
def test_the_memory_of_a_worker_does_not_grow_with_the_rows(format_: str, tmp_path: Path):
    for name, rows in (("few", 1000), ("many", 1_000_000)):
        _made_up(format_, rows).save(tmp_path / name)
    command = [sys.executable, "-c", READ, str(tmp_path / "few"), str(tmp_path / "many")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.getcwd()).stdout)
    size = (tmp_path / "many").stat().st_size
    assert size > 40 * 2**20
    assert grown < size / 4
