"""What Ray costs: from shard to batch through the Ray Data stream, against the same functions in one plain process.

    python -m benchmarks.stream [--data ../shared/data] [--rounds 3]

Both make the SimCLR views of the same images in the same order, without a training step. CPU-seconds on Ray are those of every process of
this Ray (workers, scheduler, store), after a stream that has warmed the workers up; in the plain process those of the process. They are
given for the whole stream, its start and end included, and for its steady state: from the arrival of its first sixth to that of its fifth.
The two take turns; figures are medians. The wait at an epoch boundary is what the batch across it took longer than the mean of the others.
Windows are small, because the sample of ImageNet is.
Goals at 224 px: at most 1.25 times the CPU-seconds per image in the steady state, at most 2 % of an epoch lost at its end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, command, cpu_between, cpu_seconds, tree, write_results
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.pipeline import local_batches
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source

CASES = {
    224: ("imagenet-sample/parquet/train-*.parquet", 64, 6, 128),
    32: ("cifar10/train-*.parquet", 256, 2, 2048),
}
STEADY = (1 / 6, 5 / 6)
_TASKS = ("ray::IDLE", "ray::ReadRange", "ray::MapBatches")
"""Titles of the processes that run the stream's tasks."""


@dataclass(frozen=True)
class StreamRun:
    """One stream on Ray.

    Attributes:
        images_per_cpu_s: Over the whole stream.
        images_per_s: Over the whole stream.
        steady_images_per_cpu_s: Between the two arrivals of `STEADY`.
        boundary_share: What an epoch's end costs, as a share of an epoch.
        split: Milliseconds of CPU per image in the steady state, by kind of process.
    """

    images_per_cpu_s: float
    images_per_s: float
    steady_images_per_cpu_s: float
    boundary_share: float
    split: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    details, goals = {}, []
    with ray_session("local"):
        for size_px, (pattern, batch, epochs, window) in CASES.items():
            config = apply_overrides(
                load_experiment("simclr_cifar10"),
                [
                    f"views=simclr_{size_px}",
                    f"data.path={args.data / pattern}",
                    f"train.epochs={epochs}",
                    f"train.global_batch={batch}",
                    f"data.shuffle_window={window}",
                    f"data.block_rows={batch}",
                ],
            )
            figures = measure(config, args.rounds)
            details[f"{size_px} px"] = figures
            if size_px == 224:
                what = "Ray's CPU-s per image over a plain process's in the steady state, 224 px"
                goals.append(Goal(what, figures["steady_cpu_ratio"], "at most", 1.25))
                goals.append(Goal("share of an epoch lost at its boundary, 224 px", figures["boundary_share"], "at most", 0.02))
    Console().print(as_table(details))
    print(f"written to {write_results('stream', goals, {'rounds': args.rounds, 'cases': details}, args.out)}")


def measure(config: ExperimentConfig, rounds: int) -> dict[str, Any]:
    """Medians over the rounds of images per CPU-second and per second of both, their ratios, the boundary's cost and where the time
    went."""
    plain, on_ray = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            index = prepare_run_dir(config, folder, resume=False)
            plain.append(one_process(config, folder))
            on_ray_data(config, folder, index.num_rows)
            on_ray.append(on_ray_data(config, folder, index.num_rows))
    pairs = list(zip(plain, on_ray, strict=True))
    return {
        "plain_images_per_cpu_s": statistics.median(rate for rate, _ in plain),
        "ray_images_per_cpu_s": statistics.median(run.images_per_cpu_s for run in on_ray),
        "steady_images_per_cpu_s": statistics.median(run.steady_images_per_cpu_s for run in on_ray),
        "plain_images_per_s": statistics.median(rate for _, rate in plain),
        "ray_images_per_s": statistics.median(run.images_per_s for run in on_ray),
        "cpu_ratio": statistics.median(mine / run.images_per_cpu_s for (mine, _), run in pairs),
        "steady_cpu_ratio": statistics.median(mine / run.steady_images_per_cpu_s for (mine, _), run in pairs),
        "boundary_share": statistics.median(run.boundary_share for run in on_ray),
        "ms_of_cpu_per_image": on_ray[-1].split,
    }


def one_process(config: ExperimentConfig, folder: str) -> tuple[float, float]:
    """Images per CPU-second and per second."""
    source = view_source(config, folder)
    cpu, wall, images = time.process_time(), time.perf_counter(), 0
    for batch in local_batches(source, epochs=config.train.epochs, batch_size=config.train.global_batch, on_bad=lambda rows: None):
        images += len(batch["sample_id"])
    return images / (time.process_time() - cpu), images / (time.perf_counter() - wall)


def on_ray_data(config: ExperimentConfig, folder: str, num_rows: int) -> StreamRun:
    """All epochs of the views through the stream."""
    control = start_control(num_rows, 0.0, f"{folder}/quarantine.jsonl")
    ray.get(control.bad_ids.remote())
    due = [share * num_rows * config.train.epochs for share in STEADY]
    looks: list[tuple[int, dict[int, float]]] = []
    images, began, at_first = 0, time.perf_counter(), cpu_seconds(tree(os.getpid()))
    stream = make_stream(stream_spec(config, view_source(config, folder)), SeenIds(num_rows), control)
    arrivals: list[tuple[float, int]] = []
    for batch in stream.iter_batches(batch_size=config.train.global_batch, batch_format="numpy", prefetch_batches=2):
        images += len(batch["sample_id"])
        arrivals.append((time.perf_counter(), int(np.max(batch["epoch"]))))
        if len(looks) < len(due) and images >= due[len(looks)]:
            looks.append((images, cpu_seconds(tree(os.getpid()))))
    wall = time.perf_counter() - began
    at_last = cpu_seconds(tree(os.getpid()))
    (first, before), (last, after) = looks
    split = by_kind(before, after)
    return StreamRun(
        images_per_cpu_s=images / cpu_between(at_first, at_last),
        images_per_s=images / wall,
        steady_images_per_cpu_s=(last - first) / sum(split.values()),
        boundary_share=boundary_share(arrivals),
        split={kind: round(1000 * seconds / (last - first), 3) for kind, seconds in split.items()},
    )


def by_kind(before: dict[int, float], after: dict[int, float]) -> dict[str, float]:
    """CPU-seconds between two looks: of this process, which schedules the stream, of the workers, and of what else Ray runs."""
    spent: dict[str, float] = {"tasks": 0.0, "driver": 0.0, "services": 0.0}
    for pid, seconds in after.items():
        title = command(pid)
        kind = "driver" if pid == os.getpid() else "tasks" if title.startswith(_TASKS) else "services"
        spent[kind] += seconds - before.get(pid, 0.0)
    return spent


def boundary_share(arrivals: list[tuple[float, int]]) -> float:
    """How much longer the batch across an epoch's end takes than the others do on average, as a share of an epoch; the mean over the
    ends."""
    waits = [later[0] - earlier[0] for earlier, later in pairwise(arrivals)]
    crossing = [wait for wait, (earlier, later) in zip(waits, pairwise(arrivals), strict=True) if later[1] > earlier[1]]
    if not crossing:
        return 0.0
    epoch_s = (arrivals[-1][0] - arrivals[0][0]) / (len(crossing) + 1)
    typical = (sum(waits) - sum(crossing)) / (len(waits) - len(crossing))
    return max(0.0, statistics.mean(crossing) - typical) / epoch_s


def as_table(details: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "views",
        "plain, images/CPU-s",
        "Ray, images/CPU-s",
        "steady",
        "Ray / plain, CPU-s",
        "steady",
        "plain, images/s",
        "Ray, images/s",
        "lost at an epoch's end",
        "ms of CPU per image, steady",
    )
    for name, f in details.items():
        table.add_row(
            name,
            *(f"{f[key]:,.0f}" for key in ("plain_images_per_cpu_s", "ray_images_per_cpu_s", "steady_images_per_cpu_s")),
            *(f"{f[key]:.2f}" for key in ("cpu_ratio", "steady_cpu_ratio")),
            *(f"{f[key]:,.0f}" for key in ("plain_images_per_s", "ray_images_per_s")),
            f"{f['boundary_share']:.2%}",
            ", ".join(f"{kind} {ms:.2f}" for kind, ms in f["ms_of_cpu_per_image"].items()),
        )
    return table


if __name__ == "__main__":
    main()
