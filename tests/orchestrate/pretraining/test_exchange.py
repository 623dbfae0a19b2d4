"""The exchange reads the next large window before its first part is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import Rows
from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.exchange import Exchange, read_share
from ray_sassl.pipeline import ViewSource
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.flaky_store import flaky_store
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards
from tests.orchestrate.pretraining.test_stream import SmallTasks


@dataclass
class Reads:
    """Stands for the tasks that read: notes the windows' numbers."""

    begun: list[tuple[int, int]] = field(default_factory=list)
    num_parts: int = 0

    def options(self, num_returns: int, **rest: Any) -> Reads:
        self.num_parts = num_returns
        return self

    def remote(self, source: ViewSource, window: Any, first: int, stop: int) -> list[str]:
        if not first:
            self.begun.append((window.epoch, window.number))
        return [f"{window.epoch} {window.number} {part}" for part in range(self.num_parts)]


@pytest.fixture
def source(tmp_path: Path) -> ViewSource:
    """Two windows an epoch, each of four parts."""
    overrides = ["data.shuffle_window=null", "data.shuffle_gb=0.00015", "data.block_rows=10"]
    return _source_of(apply_overrides(small_config(write_shards(tmp_path)), overrides), tmp_path)


def _source_of(config: ExperimentConfig, folder: Path) -> SmallTasks:
    prepare_run_dir(config, str(folder / "run"), resume=False)
    plain = view_source(config, str(folder / "run"))
    return SmallTasks(**{field.name: getattr(plain, field.name) for field in fields(plain)})


def _exchange(source: ViewSource, reads: Reads, store_bytes: float, monkeypatch: pytest.MonkeyPatch, seen: SeenIds | None = None) -> Any:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": store_bytes})
    exchange = cast(Any, Exchange).__ray_metadata__.modified_class(source, {}, 1, 2, seen)
    exchange._read = reads
    return exchange


def _asked(
    exchange: Any, source: ViewSource, reads: Reads, epochs: int = 2
) -> Iterator[tuple[tuple[int, int], int, list[tuple[int, int]]]]:
    """After each part in order: its window, its number, and the windows that were begun to be read by then."""
    for epoch in range(epochs):
        for window in source.plan.windows(epoch):
            for part in range(len(source.plan.parts(window))):
                assert exchange.slices(window, part)[0] == f"{epoch} {window.number} {part}"
                yield (epoch, window.number), part, list(reads.begun)


def test_the_next_window_is_read_when_half_of_one_was_asked_for_and_none_behind_the_last(source: ViewSource, monkeypatch):
    reads = Reads()
    windows = [(epoch, window.number) for epoch in range(2) for window in source.plan.windows(epoch)]
    num_parts = {(w.epoch, w.number): len(source.plan.parts(w)) for epoch in range(2) for w in source.plan.windows(epoch)}
    assert len(windows) == 4
    assert min(num_parts.values()) > 2
    for window, part, begun in _asked(_exchange(source, reads, 1e9, monkeypatch), source, reads):
        is_half = 2 * (part + 1) >= num_parts[window]
        assert begun == windows[: windows.index(window) + 1 + is_half]
    assert reads.begun == windows


def test_windows_of_which_the_stores_cannot_hold_two_are_read_in_turn(source: ViewSource, monkeypatch):
    reads = Reads()
    for window, _, begun in _asked(_exchange(source, reads, 4 * source.plan.mean_window_bytes, monkeypatch), source, reads):
        assert begun[-1] == window


def test_a_window_that_was_seen_is_not_read_ahead(source: ViewSource, monkeypatch):
    reads, seen = Reads(), SeenIds(NUM_ROWS)
    first, second = source.plan.windows(0)
    ids = source.plan.row_ids(second)
    seen.add(np.zeros(len(ids), np.int64), ids)
    exchange = _exchange(source, reads, 1e9, monkeypatch, seen)
    for part in range(len(source.plan.parts(first))):
        exchange.slices(first, part)
    assert reads.begun == [(0, 0), (1, 0)]


@dataclass
class ReadsInThreads(Reads):
    """Reads as the tasks would, in threads of this process."""

    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    running: list[Future[list[Rows]]] = field(default_factory=list)

    def remote(self, source: ViewSource, window: Any, first: int, stop: int) -> list[Any]:
        reading = self.pool.submit(read_share, source, window, first, stop)
        self.running.append(reading)
        return [lambda part=part: reading.result()[part] for part in range(self.num_parts)]


@pytest.mark.slow
def test_a_store_with_latency_has_all_requests_of_a_window_before_its_first_part_is_asked_for(tmp_path: Path, monkeypatch):
    with flaky_store() as store:
        (tmp_path / "shards").mkdir()
        for shard in sorted(Path(write_shards(tmp_path / "shards")).parent.glob("*.parquet")):
            storage.write_bytes(f"s3://bucket/shards/{shard.name}{store.options()}", shard.read_bytes())
        overrides = [f"data.path=s3://bucket/shards{store.options()}", "data.shuffle_window=null", "data.shuffle_gb=0.00015"]
        config = apply_overrides(small_config("synthetic"), [*overrides, "data.block_rows=10", "evaluate.train=null"])
        source = _source_of(config, tmp_path)
        reads, early = ReadsInThreads(), []
        exchange = _exchange(source, reads, 1e9, monkeypatch)
        store.plan = lambda method, path: time.sleep(0.05)
        for number, window in enumerate(window for epoch in range(2) for window in source.plan.windows(epoch)):
            store.log.clear()
            for part in range(len(source.plan.parts(window))):
                rows = Rows.joined([part_of() for part_of in exchange.slices(window, part)])
                if part == 0:
                    early.append(not store.log)
                blocks = source.plan.parts(window)[part]
                ids = np.concatenate([source.plan.blocks(window)[number].sample_id for number in blocks])
                assert sorted(rows.sample_id) == sorted(ids)
            wait(reads.running)  # as while the parts are decoded
            assert bool(store.log) == (number < 3), "the next window was asked of the store meanwhile"
        assert early == [False, True, True, True]
