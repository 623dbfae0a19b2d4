"""The stream gives the same bytes as one plain process, whatever its layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import ray

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.plan import Plan
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining import stream as stream_module
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.dealing import pieces
from ray_sassl.orchestrate.pretraining.exchange import make_exchange, part_reader
from ray_sassl.orchestrate.pretraining.stream import make_stream, pool_strategy, stream_spec
from ray_sassl.pipeline import ViewSource, local_batches
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import build_stylize_block, view_source
from ray_sassl.runs.teacher import build_teacher
from ray_sassl.types import Arrays
from tests.orchestrate.conftest import NUM_ROWS, kept_teacher, small_config, write_shards

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stylize=color_statistics"],
        ["stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5"],
        ["stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5", "views.backend=torch"],
        ["two blocks", "stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5", "views.backend=torch"],
        ["teacher", "stylize=color_statistics"],
        ["method=swav", "views.num_small=9", "views.small_px=8"],
        ["method=swav", "views.num_small=9", "views.small_px=8", "stylize=color_statistics", "sassl.views=all", "stream.layout=pool"],
    ],
    ids=["plain", "fused", "pool", "pool in torch", "pool of two blocks", "fused with a teacher", "multi-crop", "multi-crop in a pool"],
)
def test_ray_and_one_process_give_the_same_rows_in_the_same_order(ray_cluster: None, tmp_path: Path, overrides: list[str], monkeypatch):
    changes = [override for override in overrides if override not in ("teacher", "two blocks")]
    if "two blocks" in overrides:  # as where the actors have GPUs
        monkeypatch.setattr(stream_module, "pool_strategy", lambda spec, *rest: pool_strategy(replace(spec, actor_num_gpus=0.5), *rest))
    config = apply_overrides(small_config(write_shards(tmp_path, bad=(7, 90))), [*changes, "stream.num_cpus=0.5"])
    run_dir = str(tmp_path / "run")
    if "teacher" in overrides:
        config = kept_teacher(config, run_dir, tmp_path)
    index = prepare_run_dir(config, run_dir, resume=False)
    seen = SeenIds(NUM_ROWS)
    seen.add(np.zeros(50, np.int64), np.arange(50))
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(stream_spec(config, view_source(config, run_dir)), seen, control)
    ours = [{name: np.asarray(a) for name, a in batch.items()} for batch in stream.iter_batches(batch_size=16, drop_last=True)]
    assert "->MapBatches(StyleActor" not in stream.stats()  # decoding is a stage of its own
    expected = list(_expected(config, run_dir, seen))
    assert len(ours) == len(expected) == (2 * (NUM_ROWS - 2) - 49) // 16
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)


def test_an_actor_with_a_share_of_a_gpu_works_on_two_blocks_and_one_without_on_one(tmp_path: Path):
    config = small_config(write_shards(tmp_path))
    run_dir = str(tmp_path / "run")
    prepare_run_dir(config, run_dir, resume=False)
    limits = []
    for num_gpus in (0, 0.25):
        pool = pool_strategy(
            stream_spec(apply_overrides(config, [f"stream.pool.num_gpus={num_gpus}", "stream.layout=pool"]), view_source(config, run_dir))
        )
        limits.append((pool.max_concurrent_calls_per_actor, pool.enable_true_multi_threading))
    assert limits == [(None, False), (2, True)]


@pytest.mark.parametrize(
    "overrides", [[], ["stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5"]], ids=["plain", "pool"]
)
def test_rests_of_blocks_stay_apart(ray_cluster: None, tmp_path: Path, overrides: list[str]):
    overrides = [*overrides, "stream.num_cpus=0.5", "data.shuffle_window=40", "data.block_rows=20"]
    config = apply_overrides(small_config(write_shards(tmp_path)), overrides)
    run_dir = str(tmp_path / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    plan = view_source(config, run_dir).plan
    seen = SeenIds(NUM_ROWS)
    for block in plan.blocks(plan.windows(0)[0]):
        seen.add(np.zeros(12, np.int64), block.sample_id[:12])
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(stream_spec(config, view_source(config, run_dir)), seen, control)
    blocks = [len(block["sample_id"]) for block in stream.iter_batches(batch_size=None)]
    assert blocks == [8, 8, *[20] * 14]


def test_a_few_bad_rows_part_no_window(tmp_path: Path):
    config = apply_overrides(small_config(write_shards(tmp_path)), ["data.shuffle_window=40", "data.block_rows=20"])
    run_dir = str(tmp_path / "run")
    prepare_run_dir(config, run_dir, resume=False)
    seen = SeenIds(NUM_ROWS)
    seen.add(np.zeros(3, np.int64), np.array([1, 2, 3]))
    found = [(window.epoch, window.number, blocks) for window, blocks, _ in pieces(view_source(config, run_dir), 2, seen)]
    assert found == [(epoch, number, range(2)) for epoch in range(2) for number in range(4)]


@dataclass(frozen=True)
class SmallTasks(ViewSource):
    """A source whose windows are the work of several tasks, although they are small."""

    @property
    def plan(self) -> Plan:
        plan = super().plan
        plan.task_rows = 20
        return plan


def test_a_large_window_is_read_once_and_its_blocks_are_made_by_several_tasks(ray_cluster: None, tmp_path: Path):
    overrides = ["data.shuffle_window=null", "data.shuffle_gb=0.00015", "data.block_rows=10", "stream.num_cpus=0.5"]
    config = apply_overrides(small_config(write_shards(tmp_path, bad=(7, 90))), overrides)
    run_dir = str(tmp_path / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    plain = view_source(config, run_dir)
    source = SmallTasks(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    seen = SeenIds(NUM_ROWS)
    window = source.plan.windows(0)[0]
    for block in source.plan.blocks(window)[:3]:
        seen.add(np.zeros(7, np.int64), block.sample_id[:7])
    assert [len(blocks) for _, blocks, _ in pieces(source, 1, seen)][:8] == [1] * 8, "rests of blocks stay apart here too"
    assert max(len(blocks) for _, blocks, _ in pieces(source, 2, seen)) == 2

    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(replace(stream_spec(config, plain), source=source), seen, control)
    ours = [{name: np.asarray(a) for name, a in batch.items()} for batch in stream.iter_batches(batch_size=16, drop_last=True)]
    expected = list(_expected(config, run_dir, seen))
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)

    exchange = make_exchange(source, 0.5, {})
    assert exchange is not None
    parts = source.plan.parts(window)
    readers = [part_reader(exchange, source, window, blocks) for blocks in parts]
    found = [read().sample_id for read in readers if read is not None]
    of_parts = [np.concatenate([source.plan.blocks(window)[number].sample_id for number in blocks]) for blocks in parts]
    assert [sorted(ids) for ids in found] == [sorted(ids) for ids in of_parts]
    last = len(parts) - 1
    first, same, anew = [ray.get(exchange.slices.remote(window, last, again=again)) for again in (False, False, True)]
    assert first == same, "it is not read again"
    assert first != anew


def test_a_stream_of_half_a_cpu_runs_where_no_more_is_free(ray_cluster: None, tmp_path: Path):
    @ray.remote(num_cpus=1.5)
    class Holder:
        def is_there(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.is_there.remote())
    config = apply_overrides(small_config(write_shards(tmp_path)), ["stream.num_cpus=0.5"])
    run_dir = str(tmp_path / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(stream_spec(config, view_source(config, run_dir)), SeenIds(NUM_ROWS), control)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: next(iter(stream.iter_batches(batch_size=16))))
        try:
            assert len(first.result(timeout=90)["sample_id"]) == 16
        finally:
            ray.kill(holder)  # pyright: ignore[reportArgumentType] - with which a stream that waits for it goes on


def test_a_pool_may_be_on_gpus(ray_cluster: None, tmp_path: Path):
    overrides = ["stylize=color_statistics", "stream.pool.num_gpus=0.25", "stream.pool.node_group=stylize"]
    config = apply_overrides(small_config(write_shards(tmp_path)), overrides)
    run_dir = str(tmp_path / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    spec = stream_spec(config, view_source(config, run_dir))
    assert spec.layout == "pool"
    make_stream(spec, SeenIds(NUM_ROWS), control)  # Ray looks at the stages as they are put together; `test_autoscaling.py` runs them


def _expected(config: ExperimentConfig, run_dir: str, seen: SeenIds) -> list[Arrays]:
    stylize_block = build_stylize_block(config, "cpu", 1)
    source = view_source(config, run_dir)
    how = {"stylize_block": stylize_block, "teach": build_teacher(config, run_dir, "cpu", 1)}
    return list(local_batches(source, epochs=2, batch_size=16, on_bad=lambda rows: None, seen=seen, **how))
