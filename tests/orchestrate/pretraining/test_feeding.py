"""The plan is told to Ray a little ahead of the stream, and what it costs does not depend on the epochs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray.data
from ray import cloudpickle

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.plan import Plan, Window
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining import feeding
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.dealing import Share
from ray_sassl.orchestrate.pretraining.feeding import PlanDatasource, PlanFeeder
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.orchestrate.runtime.private import InputDataBuffer
from ray_sassl.pipeline import ViewSource, local_batches, without
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards


def _source(folder: Path, *overrides: str) -> ViewSource:
    config = apply_overrides(small_config(write_shards(folder)), ["data.shuffle_window=20", "data.block_rows=20", *overrides])
    prepare_run_dir(config, str(folder / "run"), resume=False)
    return view_source(config, str(folder / "run"))


def _seen_until(epoch: int) -> SeenIds:
    """All of the epochs before, but for two bad rows, and 50 rows of this one."""
    seen, bad = SeenIds(NUM_ROWS), np.arange(2)
    for number in range(epoch):
        seen.add(np.full(NUM_ROWS - 2, number), np.arange(2, NUM_ROWS))
    seen.add(np.full(50, epoch), np.arange(2, 52))
    return without(seen, bad)


@pytest.mark.parametrize("share", [None, Share(1, 3, num_bad=2)], ids=["one stream", "one of three"])
@pytest.mark.parametrize(("epochs", "resumed_at"), [(4, 1), (70, 60), (1000, 1), (1000, 900)])
def test_what_is_planned_and_sent_before_the_first_block_does_not_depend_on_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, resumed_at: int, share: Share | None
):
    source = _source(tmp_path)
    planned: list[int] = []
    each_window = Plan.each_window

    def noted(plan: Plan, epoch: int) -> Iterator[Window]:
        for window in each_window(plan, epoch):
            planned.append(epoch)
            yield window

    monkeypatch.setattr(Plan, "each_window", noted)
    sizes = []
    for at in (1, resumed_at):
        plan = PlanDatasource(source, epochs, _seen_until(at), share)
        assert len(plan.get_read_tasks(1)) == 1
        sizes.append(len(cloudpickle.dumps(plan)) + len(cloudpickle.dumps(plan.get_read_tasks(1))))
    assert set(planned) == {1, resumed_at}
    assert len(planned) <= 2 * 8 * (1 if share is None else 2), "windows of one epoch, which several streams look at twice"
    assert sizes[1] < 1.01 * sizes[0]


def test_the_plan_is_made_a_part_at_a_time_whatever_there_is_to_do(tmp_path: Path):
    tasks = PlanDatasource(_source(tmp_path), 10**9, SeenIds(NUM_ROWS)).further_tasks()
    assert [next(tasks).metadata.num_rows for _ in range(20)] == [1] * 20


class Watch(PlanFeeder):
    """Notes at every step what the execution holds."""

    waiting: ClassVar[list[int]] = []
    kept: ClassVar[list[int]] = []
    stats: ClassVar[list[int]] = []

    def on_execution_step(self, executor: Any) -> None:
        super().on_execution_step(executor)
        for operator, state in executor._topology.items():
            if isinstance(operator, InputDataBuffer):
                self.waiting.append(len(state.output_queue) + len(operator._input_data) - operator._input_data_index)
                self.kept.append(len(operator._input_data))
            else:
                self.stats.append(len(getattr(operator, "_output_blocks_stats", [])))


@pytest.mark.ray
@pytest.mark.parametrize("resumes", [False, True], ids=["from the start", "resumed in an epoch"])
def test_many_epochs_are_fed_in_order_with_few_tasks_known_at_a_time(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumes: bool
):
    for name, value in (("MAX_WAITING", 8), ("_AT_A_TIME", 2), ("KEPT", 4), ("KEPT_STATS", 5)):
        monkeypatch.setattr(feeding, name, value)
    monkeypatch.setattr("ray_sassl.orchestrate.pretraining.stream.PlanFeeder", Watch)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "custom_execution_callback_classes", [])
    for noted in (Watch.waiting, Watch.kept, Watch.stats):
        noted.clear()
    source = _source(tmp_path)
    config = apply_overrides(small_config(str(tmp_path / "*.parquet"), epochs=12), ["data.shuffle_window=20", "data.block_rows=20"])
    seen = _seen_until(3) if resumes else SeenIds(NUM_ROWS)
    control = start_control(NUM_ROWS, 0.05, str(tmp_path / "quarantine.jsonl"))
    stream = make_stream(stream_spec(apply_overrides(config, ["stream.num_cpus=0.5"]), source), seen, control)
    ours = [
        (int(e), int(i)) for batch in stream.iter_batches(batch_size=None) for e, i in zip(batch["epoch"], batch["sample_id"], strict=True)
    ]
    expected = [
        (int(e), int(i))
        for batch in local_batches(source, epochs=12, batch_size=1, on_bad=lambda rows: None, seen=seen)
        for e, i in zip(batch["epoch"], batch["sample_id"], strict=True)
    ]
    assert ours == expected
    assert len(ours) == (9 * NUM_ROWS - 52 if resumes else 12 * NUM_ROWS)
    assert max(Watch.waiting) <= 8
    assert max(Watch.kept) <= 4 + 8 + 2
    assert max(Watch.stats) <= 2 * 5
