"""What Ray costs: from shard to batch through the Ray Data stream, against the same functions in one plain process.

    python -m benchmarks.stream [--data ../shared/data] [--rounds 3]

Both make the SimCLR views of the same images in the same order, without a training step. CPU-seconds on Ray are those of every process of
this Ray (workers, scheduler, store) over a whole stream, after one that has warmed the workers up; in the plain process those of the
process. The two take turns; figures are medians. The wait at an epoch boundary is what the batch across it took longer than the mean of
the others. Windows are small, because the sample of ImageNet is.
Goals at 224 px: at most 1.25 times the CPU-seconds per image, at most 2 % of an epoch lost at its end.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, cpu_between, cpu_seconds, tree, write_results
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.control import start_control
from ray_sassl.orchestrate.session import ray_session
from ray_sassl.orchestrate.stream import make_stream, stream_spec
from ray_sassl.pipeline import local_batches
from ray_sassl.run import prepare_run_dir, view_source
from ray_sassl.views import opencv

CASES = {
    224: ("imagenet-sample/parquet/train-*.parquet", 64, 4, 128),
    32: ("cifar10/train-*.parquet", 256, 1, 2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    opencv.pin_threads()
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
                goals.append(Goal("Ray's CPU-s per image over a plain process's, 224 px", figures["cpu_ratio"], "at most", 1.25))
                goals.append(Goal("share of an epoch lost at its boundary, 224 px", figures["boundary_share"], "at most", 0.02))
    Console().print(as_table(details))
    print(f"written to {write_results('stream', goals, {'rounds': args.rounds, 'cases': details}, args.out)}")


def measure(config: ExperimentConfig, rounds: int) -> dict[str, float]:
    """Medians over the rounds of images per CPU-second and per second of both, their ratio, and the boundary's cost."""
    plain, on_ray, boundaries = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            index = prepare_run_dir(config, folder, resume=False)
            plain.append(one_process(config, folder))
            on_ray_data(config, folder, index.num_rows)
            rates, share = on_ray_data(config, folder, index.num_rows)
            on_ray.append(rates)
            boundaries.append(share)
    ratios = [mine[0] / theirs[0] for mine, theirs in zip(plain, on_ray, strict=True)]
    return {
        "plain_images_per_cpu_s": statistics.median(rate for rate, _ in plain),
        "ray_images_per_cpu_s": statistics.median(rate for rate, _ in on_ray),
        "plain_images_per_s": statistics.median(rate for _, rate in plain),
        "ray_images_per_s": statistics.median(rate for _, rate in on_ray),
        "cpu_ratio": statistics.median(ratios),
        "boundary_share": statistics.median(boundaries) if boundaries else math.nan,
    }


def one_process(config: ExperimentConfig, folder: str) -> tuple[float, float]:
    """Images per CPU-second and per second."""
    source = view_source(config, folder)
    cpu, wall, images = time.process_time(), time.perf_counter(), 0
    for batch in local_batches(source, epochs=config.train.epochs, batch_size=config.train.global_batch, on_bad=lambda rows: None):
        images += len(batch["sample_id"])
    return images / (time.process_time() - cpu), images / (time.perf_counter() - wall)


def on_ray_data(config: ExperimentConfig, folder: str, num_rows: int) -> tuple[tuple[float, float], float]:
    """Images per CPU-second and per second, and the share of an epoch's time that a boundary costs."""
    control = start_control(num_rows, 0.0, f"{folder}/quarantine.jsonl")
    ray.get(control.bad_rows.remote())
    images, began, cpu_before = 0, time.perf_counter(), cpu_seconds(tree(os.getpid()))
    stream = make_stream(stream_spec(config, view_source(config, folder)), SeenIds(num_rows), control)
    arrivals: list[tuple[float, int]] = []
    for batch in stream.iter_batches(batch_size=config.train.global_batch, batch_format="numpy", prefetch_batches=2):
        images += len(batch["sample_id"])
        arrivals.append((time.perf_counter(), int(np.max(batch["epoch"]))))
    wall = time.perf_counter() - began
    cpu = cpu_between(cpu_before, cpu_seconds(tree(os.getpid())))
    return (images / cpu, images / wall), boundary_share(arrivals)


def boundary_share(arrivals: list[tuple[float, int]]) -> float:
    """How much longer the batch across an epoch's end takes than the others do on average, as a share of an epoch; the mean over the ends."""
    waits = [later[0] - earlier[0] for earlier, later in pairwise(arrivals)]
    crossing = [wait for wait, (earlier, later) in zip(waits, pairwise(arrivals), strict=True) if later[1] > earlier[1]]
    if not crossing:
        return 0.0
    epoch_s = (arrivals[-1][0] - arrivals[0][0]) / (len(crossing) + 1)
    typical = (sum(waits) - sum(crossing)) / (len(waits) - len(crossing))
    return max(0.0, statistics.mean(crossing) - typical) / epoch_s


def as_table(details: dict[str, dict[str, float]]) -> Table:
    table = Table(
        "views",
        "plain, images/CPU-s",
        "Ray, images/CPU-s",
        "Ray / plain, CPU-s",
        "plain, images/s",
        "Ray, images/s",
        "lost at an epoch's end",
    )
    for name, f in details.items():
        figures = (f["plain_images_per_cpu_s"], f["ray_images_per_cpu_s"])
        rates = (f["plain_images_per_s"], f["ray_images_per_s"])
        table.add_row(
            name, *(f"{x:,.0f}" for x in figures), f"{f['cpu_ratio']:.2f}", *(f"{x:,.0f}" for x in rates), f"{f['boundary_share']:.2%}"
        )
    return table


if __name__ == "__main__":
    main()
