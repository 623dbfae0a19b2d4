"""Requests to an object store: one for each range, none to look a size up, and never of another object than was indexed."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl import pipeline
from ray_sassl.data import GROUP_ROWS, DataConfig, Rows
from ray_sassl.data.index import Index
from ray_sassl.data.plan import Window
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers import remote_parquet
from ray_sassl.data.reading import all_labels, build_index, cached_index, each_group, read_groups, read_runs
from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.pipeline import ViewSource, encoded_windows
from ray_sassl.process.errors import UsageError
from ray_sassl.process.stages import StageTimes
from ray_sassl.views.recipes import simclr
from tests.flaky_store import FlakyStore, flaky_store

pytestmark = pytest.mark.slow

IMAGE = b"\xff\xd8\xff" + bytes(200)


def _tar(num_rows: int, content: bytes = IMAGE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for row in range(num_rows):
            for ending, data in ((".jpg", content + row.to_bytes(2, "little")), (".cls", str(row % 7).encode())):
                info = tarfile.TarInfo(f"{row:05d}{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _parquet(num_rows: int, content: bytes = IMAGE) -> bytes:
    out = io.BytesIO()
    images = [content + row.to_bytes(2, "little") for row in range(num_rows)]
    pq.write_table(pa.table({"image": images, "other": [b"x" * 10] * num_rows, "label": range(num_rows)}), out, row_group_size=10)
    return out.getvalue()


@pytest.fixture(scope="module")
def store() -> Iterator[FlakyStore]:
    with flaky_store() as store:
        for number in range(3):
            _put(store, f"tar/{number}.tar", _tar(GROUP_ROWS + 10))
            _put(store, f"parquet/{number}.parquet", _parquet(40))
        for number in range(20):
            _put(store, f"folder/{number % 2}/{number}.jpg", IMAGE + bytes([number]))
        yield store


def _put(store: FlakyStore, key: str, content: bytes) -> None:
    storage.write_bytes(f"s3://bucket/{key}{store.options()}", content)


def _index(store: FlakyStore, path: str) -> Index:
    return build_index(DataConfig(path=f"s3://bucket/{path}{store.options()}"))


def _requests(store: FlakyStore) -> Counter[str]:
    found = Counter(method for method, _, _ in store.log)
    store.log.clear()
    return found


@pytest.mark.parametrize(("path", "groups", "ranges"), [("tar", 6, 6), ("parquet", 12, 12), ("folder", 1, 20)])
def test_each_range_is_one_request_and_no_size_is_looked_up(store: FlakyStore, path: str, groups: int, ranges: int):
    index = _index(store, path)
    read_groups(index, range(index.num_groups))
    _requests(store)
    rows = read_groups(index, range(index.num_groups))
    assert index.num_groups == groups
    assert _requests(store) == {"GET": ranges}
    assert all(isinstance(image, bytes) and image.startswith(IMAGE) for image in rows.encoded)
    assert rows.label.tolist() == all_labels(index).tolist()
    assert [group.encoded for group in each_group(index, range(index.num_groups))] == [
        read_groups(index, [group]).encoded for group in range(index.num_groups)
    ]


def test_a_footer_is_read_once_by_all_threads_of_a_process(store: FlakyStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_parquet, "_footers", remote_parquet._Footers())
    index = _index(store, "parquet")
    _requests(store)
    read_groups(index, range(index.num_groups))
    assert _requests(store) == {"GET": 12 + 3}


def test_the_index_is_built_by_a_listing_and_one_request_for_each_shard(store: FlakyStore):
    for path, shards in (("tar", 3), ("parquet", 3), ("folder", 0)):
        _requests(store)
        _index(store, path)
        found = _requests(store)
        assert (found["HEAD"], found["GET"]) == (1, 2 + shards), "what is there is looked up, whether a folder or a file"


def test_a_part_of_a_tar_is_one_request_of_its_own_bytes(store: FlakyStore):
    index = _index(store, "tar")
    whole = read_groups(index, [0, 1])
    _requests(store)
    part = read_runs(index, np.array([8, GROUP_ROWS]), np.array([16, 10]))
    assert _requests(store) == {"GET": 2}
    assert part.encoded == whole.encoded[8:24] + whole.encoded[GROUP_ROWS:]


def test_a_large_row_group_is_read_in_parts_with_the_same_rows(store: FlakyStore, monkeypatch: pytest.MonkeyPatch):
    index = _index(store, "parquet")
    whole = read_groups(index, [3])
    monkeypatch.setattr(remote_parquet, "_WHOLE_BYTES", 50)
    monkeypatch.setattr(remote_parquet, "_PART_BYTES", 100)
    _requests(store)
    assert read_groups(index, [3]).encoded == whole.encoded
    assert _requests(store)["GET"] > 3


@pytest.mark.parametrize(("name", "make"), [("0.tar", _tar), ("0.parquet", _parquet)])
def test_another_object_of_the_same_size_is_refused_within_the_same_second(store: FlakyStore, name: str, make):
    _put(store, f"changing-{name}/{name}", make(20))
    index = _index(store, f"changing-{name}")
    read_groups(index, [0])
    _put(store, f"changing-{name}/{name}", make(20, IMAGE[:-1] + b"!"))
    with pytest.raises(UsageError, match="has changed since the index was built"):
        read_groups(index, [0])


def test_an_object_that_is_gone_has_bad_rows(store: FlakyStore):
    _put(store, "gone/0.tar", _tar(3))
    index = _index(store, "gone")
    storage.remove(f"s3://bucket/gone/0.tar{store.options()}")
    assert [str(row.reason) for row in read_groups(index, [0]).encoded if isinstance(row, BadRow)] == [
        "the file is gone since the index was built"
    ] * 3


def test_pieces_are_read_at_the_same_time(store: FlakyStore):
    index = _index(store, "tar")
    together = threading.Barrier(4, timeout=60)

    def plan(method: str, path: str) -> None:
        together.wait()

    store.plan = plan
    try:
        starts = np.arange(0, 32, 8)
        rows = read_runs(index, starts, np.full(4, 8))  # none of the four is answered before all have been sent
    finally:
        store.plan = lambda method, path: None
    assert rows.sample_id.tolist() == list(range(32))


def _source(store: FlakyStore, folder: Path) -> ViewSource:
    """Three windows of tars, each of one block."""
    data = DataConfig(path=f"s3://bucket/tar{store.options()}", shuffle_window=GROUP_ROWS, block_rows=2 * GROUP_ROWS)
    cached_index(data, folder / "index.arrow")
    return ViewSource(str(folder / "index.arrow"), data, simclr(8), seed=3)


def test_the_next_window_is_read_while_one_is_used_and_no_further_one(store: FlakyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, begun, more = _source(store, tmp_path), [], threading.Semaphore(0)
    read = pipeline._read

    def noted(source: ViewSource, window: Window, *args: Any) -> Rows:
        begun.append(window.number)
        more.release()
        return read(source, window, *args)

    monkeypatch.setattr(pipeline, "_read", noted)
    windows = source.plan.windows(0)
    assert len(windows) == 3
    pieces = encoded_windows(source, windows, SeenIds(source.index.num_rows), StageTimes())
    for number in range(3):
        block, rows = next(pieces)
        assert block.sample_id.tolist() == rows.sample_id.tolist()
        for _ in range(2 if number == 0 else number < 2):  # of the window itself, and of the next one, while this one is in use
            assert more.acquire(timeout=20)
        assert begun == list(range(min(number + 2, 3)))
    assert list(pieces) == []


def test_windows_too_large_for_two_in_memory_are_read_in_turn(store: FlakyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = _source(store, tmp_path)
    monkeypatch.setattr(pipeline, "_AHEAD_BYTES", 2 * source.plan.mean_window_bytes - 1)
    used, read = [], pipeline._read

    def noted(*args: Any) -> Rows:
        used.append("read")
        return read(*args)

    monkeypatch.setattr(pipeline, "_read", noted)
    for _ in encoded_windows(source, source.plan.windows(0), SeenIds(source.index.num_rows), StageTimes()):
        used.append("use")
    assert used == ["read", "use"] * 3


def test_a_listing_goes_over_its_pages(store: FlakyStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_sassl.files.s3._PAGE_KEYS", 7)
    _requests(store)
    names = storage.walk(f"s3://bucket/folder{store.options()}").names.to_pylist()
    assert _requests(store) == {"GET": 3}
    assert names == sorted(f"{number % 2}/{number}.jpg" for number in range(20))
