"""Why a run is slow: the stage that holds it up is named, with what would help."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ray_sassl import pipeline
from ray_sassl.process import stages
from ray_sassl.process.stages import RANK_STAGES, StageTimes, since
from ray_sassl.runs import process
from ray_sassl.style.augment import StyleAugmentation
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers.color_statistics import Config
from ray_sassl.train import loop, prefetch, saving
from ray_sassl.train import speed as measuring
from ray_sassl.train.context import LocalContext
from ray_sassl.train.speed import Stream, advice_on_steps, speed
from ray_sassl.views.keyed import DrawKey

SLOW: dict[str, tuple[Any, str, str]] = {
    "read": (pipeline, "read_runs", "whose slowest stage is read .*data.cache_gb"),
    "decode": (pipeline, "_pixels", "whose slowest stage is decode .*stream.local_threads"),
    "views": (pipeline.opencv, "color", "whose slowest stage is views .*stream.local_threads"),
    "stylize": (StyleAugmentation, "stylize", r"whose slowest stage is stylize .*stream.pool.num_gpus"),
    "transfer": (prefetch, "to_device", "waits for batches to reach the device .*scaling.cpus_per_worker"),
    "step": (loop, "_update", "computes its steps .*backbone.name"),
    "checkpoint": (saving, "_when_copied", "stands still for checkpoints .*train.checkpoint_every"),
}
"""By stage: the function that takes long, and what the sentence says."""

CPU = advice_on_steps("cpu", is_float32=True, is_compiled=False)


class _Clock:
    """A clock that a slow function moves on by a second; each look at it takes a microsecond."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def slowly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **options: Any) -> Any:
            self.now += 1
            return function(*args, **options)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """What times are measured with."""
    clock = _Clock()
    for module in (stages, prefetch, measuring):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("stage", SLOW)
def test_a_slow_stage_is_the_bottleneck(tiny_config, run_here, tmp_path, monkeypatch, clock, stage):
    where, name, sentence = SLOW[stage]
    monkeypatch.setattr(where, name, clock.slowly(getattr(where, name)))
    overrides = ["train.checkpoint_every=1"] if stage == "checkpoint" else []
    context = LocalContext()
    run = run_here(tiny_config("simclr", "stylize=color_statistics", "train.epochs=1.2", *overrides), tmp_path, context)
    assert run.outcome.status == "finished"
    found = context.speeds[-1].bottleneck
    assert re.search(sentence, found), found


def test_slow_scores_are_the_bottleneck(tiny_config, run_here, tmp_path, monkeypatch, clock):
    scores = SimpleNamespace(validation=clock.slowly(lambda backbone, check: {"knn_top1": 0.5}), test=lambda backbone, check: {})
    monkeypatch.setattr(process, "online_scores", lambda config, device: scores)
    context = LocalContext()
    run_here(tiny_config("simclr", "train.evaluate_every=1", "train.epochs=1.2"), tmp_path, context)
    assert "computes scores" in context.speeds[-1].bottleneck
    assert "train.evaluate_every" in context.speeds[-1].bottleneck


def test_once_an_epoch_the_shares_add_up_and_are_among_the_metrics(tiny_config, run_here, tmp_path):
    context = LocalContext()
    run_here(tiny_config("simclr", "stylize=color_statistics"), tmp_path, context)
    told = [report for report in context.reports if "share_step" in report]
    assert [report["step"] for report in told] == [3, 6]
    assert len(context.speeds) == 2
    for report, found in zip(told, context.speeds, strict=True):
        assert sum(report[f"share_{stage}"] for stage in RANK_STAGES) == pytest.approx(1)
        assert report["share_wait"] == found.ranks[0]["wait"]
        assert {f"busy_{stage}" for stage in ("read", "decode", "views", "stylize")} <= report.keys()
        assert report["rate_decode"] == found.rates["decode"] > 0
        assert 0 < sum(found.busy.values()) <= report["share_wait"] + 0.01


def _rank(**shares: float) -> dict[str, float]:
    return {"step": 1 - sum(shares.values()), **shares}


def test_beside_the_stream_a_tenth_of_waiting_is_enough_and_the_missing_cpus_are_counted():
    spent = {"read": (2.0, 1000), "decode": (12.0, 1000), "views": (10.0, 1000)}
    found = speed([{stage: 4 * share for stage, share in _rank(wait=0.25).items()}] * 2, spent, 1000, Stream("tasks"), CPU)
    # 24 s in 4 s are 6 processes, which did in 3 s of work what takes 4
    assert "waits for the stream 25% of the time, whose slowest stage is decode" in found.bottleneck
    assert found.bottleneck.endswith("give the stream's tasks 2 more CPUs.")
    assert found.rates["decode"] == pytest.approx(1000 / 12)


def test_the_stylizers_of_a_pool_are_named_only_where_they_are_busy():
    ranks, reading = [_rank(wait=0.5)], {"decode": (1.0, 10)}
    busy = speed(ranks, {**reading, "stylize": (3.9, 10)}, 10, Stream("pool", num_stylizers=4), CPU)
    assert busy.bottleneck.endswith("take 4 more stylizers (stream.pool.max), or a faster stylizer.")
    idle = speed(ranks, {**reading, "stylize": (2.0, 10)}, 10, Stream("pool", num_stylizers=4), CPU)
    assert "slowest stage is decode" in idle.bottleneck
    assert idle.bottleneck.endswith("give the stream's tasks 1 more CPU.")


def test_a_worker_that_waits_more_than_the_others_is_named():
    found = speed([_rank(), _rank(), _rank(wait=0.6)], {"decode": (1.0, 10)}, 10, Stream("tasks"), CPU)
    assert "20% of the time, worker 2 60%" in found.bottleneck


def test_a_block_that_waits_for_another_ones_stylizing_does_not_count_as_stylized_meanwhile(clock):
    class Turn:
        """A lock that another thread has for a hundred seconds."""

        def __enter__(self) -> None:
            clock.now += 100

        def __exit__(self, *error: object) -> None:
            pass

    times, cpu = StageTimes(), torch.device("cpu")
    augmentation = StyleAugmentation(Config().build(cpu), SasslConfig(prob=1.0), cpu)
    object.__setattr__(augmentation, "_turn", Turn())
    with times.stage("stylize", 4):
        augmentation.stylize(np.zeros((4, 8, 8, 3), np.uint8), DrawKey(0, 0, np.arange(4)))
        clock.now += 1
    assert times.total()["stylize"] == (pytest.approx(1, abs=0.1), 4)


def test_times_of_threads_are_added_and_the_oldest_is_what_stands():
    times = StageTimes()
    before = times.total()
    with times.stage("decode", 3):
        standing = times.standing()
        assert standing is not None
        assert standing.stage == "decode"
        assert "test_times_of_threads" in standing.stack
    assert times.standing() is None
    (seconds, images) = since(before, times.total())["decode"]
    assert images == 3
    assert seconds > 0


def test_a_cpu_is_not_advised_what_only_gpus_gain_from_nor_a_gpu_what_it_does_already():
    on_cpu = speed([_rank()], {}, 10, Stream("local"), CPU).bottleneck
    assert on_cpu.startswith("Training computes its steps 100% of the time. To be faster, take a GPU, a smaller encoder (backbone.name)")
    assert "bfloat16" not in on_cpu
    assert "compile" not in on_cpu
    on_gpu = advice_on_steps("cuda", is_float32=True, is_compiled=False)
    assert on_gpu == "take more workers (scaling.num_workers) or train.precision=bfloat16 or train.compile=true"
    assert advice_on_steps("cuda", is_float32=False, is_compiled=True) == "take more workers (scaling.num_workers)"
