"""Each worker has a stream of its own: none waits for what another one needs, and together they give each row once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
from ray.data import DataContext
from ray.data._internal.logical.optimizers import get_execution_plan

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.dealing import Share
from ray_sassl.orchestrate.pretraining.feeding import piece_of_row
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.pretraining.reading import ReadStage
from ray_sassl.orchestrate.pretraining.sharing import StreamsOfWorkers, StreamStart, whole_steps
from ray_sassl.orchestrate.pretraining.stream import stages_of, stream_spec
from ray_sassl.pipeline import local_batches
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import build_stylize_block, view_source
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.types import Arrays
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards

POOL = ["stylize=color_statistics", "stream.layout=pool", "stream.pool.min=2", "stream.pool.max=2", "stream.pool.num_cpus=0.25"]


@pytest.fixture
def own_context() -> Iterator[None]:
    with DataContext.current(DataContext.get_current().copy()):
        yield


@dataclass(frozen=True)
class HeldReads:
    """`ReadStage`, but the task of the plan's first piece waits until a file is there."""

    until: Path
    reading: ReadStage | None = None

    def __call__(self, *args: Any) -> HeldReads:
        return HeldReads(self.until, ReadStage(*args))

    def views(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        assert self.reading is not None
        piece = piece_of_row(batch, 0)
        while piece and (piece.window.epoch, piece.window.number) == (0, 0) and not self.until.exists():
            time.sleep(0.05)
        yield from self.reading.views(batch)


def _start(config: ExperimentConfig, folder: Path, **stages: Any) -> StreamStart:
    run_dir = str(folder / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.05, str(folder / "quarantine.jsonl"))
    return StreamStart(stream_spec(config, view_source(config, run_dir)), SeenIds(index.num_rows), 0, control, None, None, stages)


def _batches(stream: Any, batch_size: int = 16) -> Iterator[Arrays]:
    return ({name: np.asarray(array) for name, array in batch.items()} for batch in stream.iter_batches(batch_size=batch_size))


@pytest.mark.ray
def test_a_task_that_takes_long_holds_up_one_worker_only(ray_cluster: None, own_context: None, tmp_path: Path):
    config = apply_overrides(small_config(write_shards(tmp_path), epochs=3), ["stream.num_cpus=0.5"])
    first, second = (streams["train"] for streams in StreamsOfWorkers().configure({"train": _held(config, tmp_path)}, 2))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, _batches(first))
        try:
            rows = sum(len(batch["sample_id"]) for batch in _batches(second))
            assert not waiting.done()
        finally:
            (tmp_path / "go on").touch()
        assert rows == sum(len(batch["sample_id"]) for batch in waiting.result()) == 3 * NUM_ROWS // 2


def _held(config: ExperimentConfig, folder: Path) -> StreamStart:
    return _start(config, folder, read_stage=HeldReads(folder / "go on"))


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [2, 4], ids=["a stream each", "two for one stream"])
def test_the_streams_of_a_pool_give_the_bytes_of_one_process(ray_cluster: None, own_context: None, tmp_path: Path, num_workers: int):
    config = apply_overrides(small_config(write_shards(tmp_path), epochs=1), [*POOL, "stream.num_cpus=0.25", "data.shuffle_window=100"])
    start = _start(config, tmp_path)
    parts = [streams["train"] for streams in StreamsOfWorkers().configure({"train": start}, num_workers)]
    assert len({part.share for part in parts}) == 2
    with ThreadPoolExecutor(num_workers) as pool:
        given = list(pool.map(lambda part: list(_batches(part)), parts))
    assert [sum(len(batch["sample_id"]) for batch in batches) for batches in given] == [NUM_ROWS // num_workers] * num_workers
    ours = {int(number): batch["view_0"][row] for batches in given for batch in batches for row, number in enumerate(batch["sample_id"])}
    stylize = build_stylize_block(config, "cpu", 1)
    for batch in local_batches(start.spec.source, epochs=1, batch_size=NUM_ROWS, on_bad=lambda rows: None, stylize_block=stylize):
        for row, number in enumerate(batch["sample_id"]):
            np.testing.assert_array_equal(ours.pop(int(number)), batch["view_0"][row])
    assert not ours


@pytest.mark.ray
@pytest.mark.parametrize(
    ("overrides", "is_near"),
    [([], True), (["stream.node_group=decode"], False), ([*POOL, "stream.pool.node_group=stylize"], True)],
    ids=["anywhere", "a group", "a pool"],
)
def test_tasks_prefer_the_workers_node_unless_they_have_nodes_of_their_own(
    ray_cluster: None, own_context: None, tmp_path: Path, overrides: list[str], is_near: bool
):
    start = _start(apply_overrides(small_config(write_shards(tmp_path)), overrides), tmp_path)
    here = ray.get_runtime_context().get_node_id()
    plan, _ = get_execution_plan(start.stream(Share(0, 2), near=here)._logical_plan)
    stage = plan.dag
    while "Read" not in stage.name:
        (stage,) = stage.input_dependencies
    assert "->MapBatches" in stage.name, "they are still one stage"
    assert getattr(cast(Any, stage)._ray_remote_args.get("scheduling_strategy"), "node_id", None) == (here if is_near else None)


@pytest.mark.ray
def test_workers_end_together_although_one_of_them_has_the_bad_rows(ray_cluster: None, tmp_path: Path):
    config = apply_overrides(
        small_config(write_shards(tmp_path), epochs=1, num_workers=2),
        ["evaluate.train=null", "evaluate.test=null", "data.shuffle_window=80"],
    )
    run_dir = tmp_path / "run"
    prepare_run_dir(config, str(run_dir), resume=False)
    bad = view_source(config, str(run_dir)).plan.blocks(view_source(config, str(run_dir)).plan.windows(0)[0])[0].sample_id[:8]
    (folder := tmp_path / "bad").mkdir()
    config = apply_overrides(config, [f"data.path={write_shards(folder, bad=tuple(bad.tolist()))}"])
    result = pretrain(config, str(folder / "run"))
    assert (result.status, result.step) == ("finished", NUM_ROWS // 16 - 1)
    checkpoint = latest_checkpoint(str(folder / "run"))
    assert checkpoint is not None
    assert checkpoint.seen.count(0) == 16 * result.step


class _Ranks:
    """An agreement of threads."""

    def __init__(self, count: int) -> None:
        self._barrier, self._flags, self.asked = threading.Barrier(count, timeout=10), [False] * count, [0] * count

    def of(self, rank: int) -> Any:
        ranks = self

        class Agreement:
            def exchange(self, flags: list[bool], *, at_once: bool) -> list[bool]:
                ranks.asked[rank] += 1
                (ranks._flags[rank],) = flags
                ranks._barrier.wait()
                found = [any(ranks._flags)]
                ranks._barrier.wait()
                return found

        return Agreement()


def test_steps_that_one_rank_cannot_fill_are_dropped_by_all_and_sure_ones_are_not_asked_about():
    ranks = _Ranks(2)

    def given(rank: int, num_batches: int) -> list[int]:
        batches = ({"sample_id": np.array([number])} for number in range(num_batches))
        return [int(batch["sample_id"][0]) for batch in whole_steps(batches, 2, 3, ranks.of(rank))]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(given, (0, 1), (12, 9))) == [list(range(8)), list(range(8))]
    assert ranks.asked == [2, 2]


@pytest.mark.parametrize(
    ("overrides", "num_workers", "num_streams"),
    [
        ([], 8, 8),
        (["stylize=color_statistics"], 8, 8),
        (POOL, 8, 2),
        ([*POOL, "stream.pool.max=3"], 8, 1),
        ([*POOL, "stream.pool.min=16", "stream.pool.max=32"], 8, 8),
        ([*POOL, "stream.pool.max=4"], 1, 1),
    ],
)
def test_workers_share_a_stream_where_they_cannot_have_as_many_stylizers(
    tmp_path: Path, overrides: list[str], num_workers: int, num_streams: int
):
    config = apply_overrides(small_config(write_shards(tmp_path)), overrides)
    prepare_run_dir(config, str(tmp_path / "run"), resume=False)
    assert stream_spec(config, view_source(config, str(tmp_path / "run"))).num_streams(num_workers) == num_streams


def test_only_steps_that_bad_rows_may_cut_short_are_not_sure(tmp_path: Path):
    config = small_config(write_shards(tmp_path), epochs=100)
    prepare_run_dir(config, str(tmp_path / "run"), resume=False)
    seen = SeenIds(NUM_ROWS)
    seen.add(np.zeros(100, np.int64), np.arange(100))
    start = StreamStart(stream_spec(config, view_source(config, str(tmp_path / "run"))), seen, 0, None, None, None)  # pyright: ignore[reportArgumentType]
    (stream, _) = (streams["train"] for streams in StreamsOfWorkers().configure({"train": start}, 2))
    assert stream.sure_steps(8, 2) == ((100 * NUM_ROWS - 100) // 2 - 100 * 9) // 8


@pytest.mark.parametrize(("overrides", "num_stages"), [([], 1), (POOL, 2)])
def test_streams_know_how_many_cpus_the_training_workers_take(tmp_path: Path, overrides: list[str], num_stages: int):
    config = apply_overrides(small_config(write_shards(tmp_path)), [*overrides, "scaling.cpus_per_worker=3"])
    prepare_run_dir(config, str(tmp_path / "run"), resume=False)
    spec = stream_spec(config, view_source(config, str(tmp_path / "run")))
    start = StreamStart(spec, SeenIds(NUM_ROWS), 0, None, None, None)  # pyright: ignore[reportArgumentType]
    workers = StreamsOfWorkers().configure({"train": start}, 2)
    assert [stage.most_taken for stage in stages_of(spec, workers[0]["train"].share)] == [6] * num_stages
    assert [stage.most_taken for stage in stages_of(spec, None)] == [math.inf] * num_stages
