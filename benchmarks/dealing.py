"""What it costs to schedule the blocks of several workers: one stream that deals to all of them, against a stream for each.

    python -m benchmarks.dealing [--workers 4] [--rounds 3]

Tasks make small blocks without any work, so that all that is left is what Ray Data does for a block. Threads stand for the workers. Counted
is the CPU time of the processes that schedule (Ray's SplitCoordinator), from the arrival of the first sixth of the blocks to that of the
fourth. The two take turns; figures are medians. One process schedules at most as many blocks a second as it does in a CPU-second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, command, cpu_seconds, tree, write_results
from benchmarks.sleeping import write_rows
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.dealing import Share
from ray_sassl.orchestrate.pretraining.feeding import piece_of_row
from ray_sassl.orchestrate.pretraining.sharing import StreamsOfWorkers, StreamStart
from ray_sassl.orchestrate.pretraining.stream import stream_spec
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.pipeline import ViewSource
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from ray_sassl.types import Arrays

BLOCK_ROWS, WINDOW_ROWS = 16, 256
STEADY = (1 / 6, 2 / 3)


@dataclass(frozen=True)
class Scheduling:
    """One run.

    Attributes:
        blocks_per_cpu_s: Of all processes that schedule, together.
        busiest_blocks_per_cpu_s: Of all blocks, over the CPU-seconds of the busiest of these processes.
        blocks_per_s: On the wall clock.
        num_processes: How many schedule.
    """

    blocks_per_cpu_s: float
    busiest_blocks_per_cpu_s: float
    blocks_per_s: float
    num_processes: int


@dataclass(frozen=True)
class EmptyReads:
    """Stands for `ReadStage`: gives the numbers of a block's rows."""

    source: ViewSource | None = None

    def __call__(self, source: ViewSource, *rest: Any) -> EmptyReads:
        return EmptyReads(source)

    def views(self, batch: dict[str, np.ndarray]) -> Iterator[Arrays]:
        assert self.source is not None
        window, blocks, rows = piece_of_row(batch, 0) or (None, range(0), None)
        for block in self.source.plan.blocks(window)[blocks.start : blocks.stop] if window else ():
            ids = block.sample_id if rows is None else block.sample_id[rows.start : rows.stop]
            # as many bytes as views have: Ray joins blocks that are smaller
            yield {"sample_id": ids} | {
                f"view_{n}": np.zeros((len(ids), px, px, 3), np.uint8) for n, px in enumerate(self.source.views.sizes_px)
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, list[Scheduling]] = {"one stream": [], "a stream each": []}
    with ray_session("local"), tempfile.TemporaryDirectory() as folder:
        config = apply_overrides(
            load_experiment("moco_cifar10_cpu"),
            [
                f"data.path={write_rows(Path(folder))}", f"data.block_rows={BLOCK_ROWS}", f"data.shuffle_window={WINDOW_ROWS}",
                f"train.epochs={args.epochs}", "stream.num_cpus=0.25", "stylize=identity", "views.backend=opencv", "evaluate.train=null",
                "evaluate.test=null",
            ],
        )  # fmt: skip
        prepare_run_dir(config, f"{folder}/run", resume=False)
        for _ in range(args.rounds):
            for name, runs in found.items():
                runs.append(schedule(config, Path(folder), args.workers, is_one=name == "one stream"))
                print(f"{name}: {runs[-1]}", flush=True)
    medians = {name: _medians(runs) for name, runs in found.items()}
    table = Table("", *medians)
    for what in medians["one stream"]:
        table.add_row(what, *(f"{figures[what]:.0f}" for figures in medians.values()))
    Console().print(table)
    before, after = (figures["busiest_blocks_per_cpu_s"] for figures in medians.values())
    goals = [Goal("blocks for a CPU-second of the busiest process that schedules, over one stream's", after / before, "at least", 1.5)]
    details = {"workers": args.workers, "medians": medians, "runs": {name: [asdict(run) for run in runs] for name, runs in found.items()}}
    print(f"written to {write_results('dealing', goals, details, args.out)}")


def schedule(config: ExperimentConfig, folder: Path, num_workers: int, *, is_one: bool) -> Scheduling:
    """All blocks of a run, dealt to the workers by one stream or by one each."""
    source = view_source(config, str(folder / "run"))
    num_rows = source.index.num_rows
    control = start_control(num_rows, 0.0, str(folder / "quarantine.jsonl"))
    start = StreamStart(stream_spec(config, source), SeenIds(num_rows), 0, control, None, None, {"read_stage": EmptyReads()})
    before = _schedulers()
    parts: list[Any]
    if is_one:
        parts = start.stream(Share()).streaming_split(num_workers, equal=True)
    else:
        parts = [streams["train"] for streams in StreamsOfWorkers().configure({"train": start}, num_workers)]
    counts = [0] * num_workers

    def take(number: int) -> None:
        for _ in parts[number].iter_batches(batch_size=None):
            counts[number] += 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(num_workers)]
    for thread in threads:
        thread.start()
    looks = []
    for share in STEADY:
        while sum(counts) < share * config.train.epochs * num_rows / BLOCK_ROWS:
            assert any(thread.is_alive() for thread in threads), f"only {sum(counts)} blocks came"
            time.sleep(0.01)
        looks.append((sum(counts), time.perf_counter(), cpu_seconds(_schedulers())))
    for thread in threads:
        thread.join()
    (first, began, cpu), (last, ended, cpu_after) = looks
    spent = [seconds - cpu.get(pid, 0.0) for pid, seconds in cpu_after.items() if pid not in before]
    ray.kill(control)
    blocks = last - first
    return Scheduling(blocks / sum(spent), blocks / max(spent), blocks / (ended - began), len(spent))


def _medians(runs: list[Scheduling]) -> dict[str, float]:
    return {name: statistics.median(asdict(run)[name] for run in runs) for name in asdict(runs[0])}


def _schedulers() -> list[int]:
    """The processes that schedule a stream."""
    return [pid for pid in tree(os.getpid()) if command(pid).startswith("ray::SplitCoordinator")]


if __name__ == "__main__":
    main()
