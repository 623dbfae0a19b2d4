"""What is kept of an object store: the same rows, and no second request for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.disk_cache import DiskCache, _kept
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from tests.flaky_store import FlakyStore, flaky_store

IMAGE_BYTES = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyStore]:
    folder = tmp_path_factory.mktemp("shards")
    draws = np.random.default_rng(0)
    for shard in range(2):
        images = [draws.bytes(IMAGE_BYTES) for _ in range(20)]
        if shard == 1:
            images[7] = b""
        pq.write_table(pa.table({"image": images, "label": range(20)}), folder / f"{shard}.parquet", row_group_size=5)
    with flaky_store() as store:
        for file in folder.iterdir():
            storage.write_bytes(f"s3://bucket/shards/{file.name}{store.options()}", file.read_bytes())
        yield store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    _kept.cache_clear()
    return tmp_path / "row-groups"


def _index(store: FlakyStore, cache_gb: float) -> Index:
    return build_index(DataConfig(path=f"s3://bucket/shards{store.options()}", cache_gb=cache_gb))


def _requests(store: FlakyStore, index: Index, group: int) -> int:
    """How many requests for content it takes to read a row group."""
    store.log.clear()
    read_groups(index, [group])
    return sum(method == "GET" for method, _, _ in store.log)


def _same(ours: Rows, theirs: Rows) -> bool:
    arrays = all((getattr(ours, name) == getattr(theirs, name)).all() for name in ("sample_id", "label", "row"))
    return arrays and all(getattr(ours, name) == getattr(theirs, name) for name in ("encoded", "key", "path"))


def test_what_was_read_once_is_not_asked_for_again(store: FlakyStore):
    index, plain = _index(store, 1), _index(store, 0)
    for group in (0, 3, 7):
        assert _requests(store, index, group) > 0
        assert _requests(store, index, group) == 0
        assert _same(read_groups(index, [group]), read_groups(plain, [group]))
        assert _requests(store, plain, group) > 0


def test_a_group_with_a_bad_row_is_read_each_time(store: FlakyStore):
    index = _index(store, 1)
    assert any(isinstance(image, BadRow) for image in read_groups(index, [5]).encoded)
    assert _requests(store, index, 5) > 0


def test_a_changed_file_is_refused_and_what_was_kept_of_it_before_is_as_it_was_indexed(store: FlakyStore):
    path = f"s3://bucket/changing/0.parquet{store.options()}"
    table = pa.table({"image": [b"one"] * 4, "label": [0] * 4})
    with storage.open_atomic(path) as file:
        pq.write_table(table, file, row_group_size=2)
    index = build_index(DataConfig(path=path, cache_gb=1))
    read_groups(index, [0])
    time.sleep(1.1)  # a store's clock has seconds, and a single file is indexed without its ETag
    with storage.open_atomic(path) as file:
        pq.write_table(table.set_column(0, "image", [[b"two"] * 4]), file, row_group_size=2)
    with pytest.raises(UsageError, match="has changed since the index was built"):
        read_groups(index, [1])
    assert read_groups(index, [0]).encoded == [b"one"] * 2


def test_files_on_a_disk_are_not_kept(tmp_path: Path, cache: Path):
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), tmp_path / "a.parquet")
    index = build_index(DataConfig(path=str(tmp_path / "a.parquet"), cache_gb=1))
    read_groups(index, [0])
    assert not cache.exists()


def test_a_damaged_copy_is_thrown_away_and_read_anew(store: FlakyStore, cache: Path):
    index = _index(store, 1)
    whole = read_groups(index, [0])
    (file,) = cache.rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:-200])
    assert _requests(store, index, 0) > 0
    assert _same(read_groups(index, [0]), whole)
    assert _requests(store, index, 0) == 0


def test_no_more_is_kept_than_there_is_room_for(store: FlakyStore, cache: Path):
    index = _index(store, 25e-6)  # four groups of 5 images of 1,000 bytes
    read_groups(index, range(index.num_groups))
    kept = sorted(cache.rglob("*.arrow"))
    assert 2 <= len(kept) <= 4
    read_groups(index, range(index.num_groups))
    assert sorted(cache.rglob("*.arrow")) == kept


def test_threads_that_look_at_the_same_time_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, answers = DiskCache(tmp_path, 100), []
    other = Thread(target=lambda: answers.append(kept._has_room(60, "data")))

    def used(own: str) -> int:
        if not answers and not other.is_alive():
            other.start()
            other.join(timeout=0.2)  # it has to wait
        return 0

    monkeypatch.setattr(kept, "_used_bytes", used)
    answers.append(kept._has_room(60, "data"))
    other.join()
    assert sorted(answers) == [False, True]


def test_other_data_that_nobody_reads_makes_room(store: FlakyStore, cache: Path):
    for name, age_s in (("forgotten", 7200), ("in-use", 10)):
        (cache / name).mkdir(parents=True)
        (cache / name / "0.arrow").write_bytes(b"x" * 20_000)
        os.utime(cache / name, (time.time() - age_s, time.time() - age_s))
    index = _index(store, 35e-6)
    read_groups(index, [0])
    assert not (cache / "forgotten").exists()
    assert (cache / "in-use").exists()
    assert _requests(store, index, 0) == 0


def test_a_disk_that_refuses_is_a_warning(store: FlakyStore, cache: Path, caplog: pytest.LogCaptureFixture):
    cache.write_text("in the way")
    index = _index(store, 1)
    read_groups(index, [0, 1])
    assert caplog.text.count("cannot be kept") == 1
    assert _requests(store, index, 0) > 0


def test_two_processes_that_keep_the_same_leave_one_file(tmp_path: Path, store: FlakyStore):
    rows = read_groups(_index(store, 0), [0])
    one, two = (DiskCache(tmp_path / "both", 10**6) for _ in range(2))
    for kept in (one, two):
        kept.keep(Path("data", "0.arrow"), rows)
    assert [file.name for file in (tmp_path / "both" / "data").iterdir()] == ["0.arrow"]
    found = two.read(Path("data", "0.arrow"), rows.sample_id)
    assert found is not None
    assert _same(found, rows)


def test_a_cache_folder_removed_during_a_read_makes_no_row_bad(store: FlakyStore, cache: Path, monkeypatch: pytest.MonkeyPatch):
    index = _index(store, 1)
    whole = read_groups(index, [0])
    monkeypatch.setattr("ray_sassl.data.disk_cache._last_use", lambda folder: 0.0)

    def gone(folder: Path) -> None:
        raise FileNotFoundError(folder)

    monkeypatch.setattr("ray_sassl.data.disk_cache.os.utime", gone)
    assert _same(read_groups(index, [0]), whole)


def test_foreign_folders_are_not_changed(store: FlakyStore, cache: Path):
    cache.mkdir()
    (cache / "stray").write_text("x")
    index = _index(store, 1)
    read_groups(index, [0])
    assert _requests(store, index, 0) == 0
