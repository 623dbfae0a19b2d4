"""The loader without Ray (`stream.local_threads`): images a second by its number of threads.

    python -m benchmarks.local_loader [--size-px 224] [--images 512] [--rounds 5] [--out FILE]

Two views of JPEG files in a Parquet shard, as `scaling.num_workers=0` makes them, without training. One thread, two, and so on by powers
of two up to the CPUs of this process take turns, and after each of them as many processes of one thread, which share nothing: they get what
the machine gives at that time, so the ratio of threads to processes holds on a busy machine too. Figures are medians over the rounds, and
ratios those of each round.
Goals: 0.9 of the images a second of as many processes; 0.9 of one thread's images a CPU-second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.gpu import num_cpus, write_images
from benchmarks.measuring import Goal, write_results
from ray_sassl.pipeline import ViewSource, local_batches

BATCH_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    counts = [2**n for n in range(num_cpus().bit_length()) if 2**n < num_cpus()] + [num_cpus()]
    found: dict[int, list[Rates]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder), args.images, args.size_px)
        for number in range(args.rounds):
            for count in counts if number % 2 == 0 else counts[::-1]:
                found[count].append(Rates(*rates(source, count), of_processes(source, count)))
    one = found[1]
    figures = {
        count: {
            "images_per_s": statistics.median(mine.wall for mine in rounds),
            "over_one_thread": statistics.median(mine.wall / alone.wall for mine, alone in zip(rounds, one, strict=True)),
            "over_processes": statistics.median(mine.wall / mine.processes for mine in rounds),
            "cpu_over_one_thread": statistics.median(mine.cpu / alone.cpu for mine, alone in zip(rounds, one, strict=True)),
        }
        for count, rounds in found.items()
    }
    table = Table("threads", *(name.replace("_", " ") for name in figures[1]), title="The loader without Ray")
    for count, values in figures.items():
        table.add_row(str(count), *(f"{value:,.2f}" for value in values.values()))
    Console().print(table)
    most = figures[counts[-1]]
    goals = [
        Goal(f"of the images/s of {counts[-1]} processes, as many threads", most["over_processes"], "at least", 0.9),
        Goal("of one thread's images a CPU-second", most["cpu_over_one_thread"], "at least", 0.9),
    ]
    print(f"written to {write_results('local_loader', goals, {'threads': figures}, args.out)}")


@dataclass(frozen=True)
class Rates:
    """Images a second, and a CPU-second, of threads, and images a second of as many processes."""

    wall: float
    cpu: float
    processes: float


def rates(source: ViewSource, num_threads: int) -> tuple[float, float]:
    """Images a second, and a CPU-second of this process, of one epoch."""
    cpu, wall, num_images = time.process_time(), time.perf_counter(), 0
    for batch in local_batches(source, epochs=1, batch_size=BATCH_ROWS, on_bad=_refuse, num_threads=num_threads):
        num_images += len(batch["sample_id"])
    return num_images / (time.perf_counter() - wall), num_images / (time.process_time() - cpu)


def of_processes(source: ViewSource, number: int) -> float:
    """Images a second of so many processes together, each with one thread and an epoch of its own."""
    began = time.perf_counter()
    children = []
    for _ in range(number):
        if not (child := os.fork()):
            rates(source, 1)
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a process of the loader failed")
    return number * source.index.num_rows / (time.perf_counter() - began)


def _refuse(rows: list) -> None:
    raise ValueError(f"files that were just written cannot be decoded: {rows}")


if __name__ == "__main__":
    main()
