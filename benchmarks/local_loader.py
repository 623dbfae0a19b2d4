"""The loader without Ray (`stream.local_threads`): images a second by its number of threads.

    python -m benchmarks.local_loader [--size-px 224] [--images 512] [--rounds 5] [--out FILE]

Two views of JPEG files in a Parquet shard, as `scaling.num_workers=0` makes them, without training. One thread, two, and so on by powers
of two up to the CPUs of this process take turns; speeds are medians over the rounds, and ratios those of each round. What threads cost is
told by the images a CPU-second, also where other processes take the CPUs.
Goals: as many times one thread's images/s as there are CPUs, times 0.85; 0.95 of one thread's images a CPU-second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
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
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder), args.images, args.size_px)
        for number in range(args.rounds):
            for count in counts if number % 2 == 0 else counts[::-1]:
                found[count].append(rates(source, count))
    table = Table("threads", "images/s", "over one thread", "images/CPU-s", "over one thread", title="The loader without Ray")
    ratios = {count: [_ratio(found, count, kind) for kind in (0, 1)] for count in counts}
    for count in counts:
        wall, cpu = (statistics.median(values) for values in zip(*found[count], strict=True))
        table.add_row(str(count), f"{wall:,.0f}", f"{ratios[count][0]:.2f}", f"{cpu:,.0f}", f"{ratios[count][1]:.2f}")
    Console().print(table)
    most = counts[-1]
    goals = [
        Goal(f"times one thread's images/s, {most} threads on {most} CPUs", ratios[most][0], "at least", 0.85 * most),
        Goal("of one thread's images a CPU-second", ratios[most][1], "at least", 0.95),
    ]
    details = {str(count): {"speedup": ratios[count][0], "per_cpu_second": ratios[count][1], "rounds": found[count]} for count in counts}
    print(f"written to {write_results('local_loader', goals, {'threads': details}, args.out)}")


def rates(source: ViewSource, num_threads: int) -> tuple[float, float]:
    """Images a second, and a CPU-second of this process, of one epoch."""
    cpu, wall, num_images = time.process_time(), time.perf_counter(), 0
    for batch in local_batches(source, epochs=1, batch_size=BATCH_ROWS, on_bad=_refuse, num_threads=num_threads):
        num_images += len(batch["sample_id"])
    return num_images / (time.perf_counter() - wall), num_images / (time.process_time() - cpu)


def _ratio(found: dict[int, list[tuple[float, float]]], count: int, kind: int) -> float:
    return statistics.median(mine[kind] / one[kind] for mine, one in zip(found[count], found[1], strict=True))


def _refuse(rows: list) -> None:
    raise ValueError(f"files that were just written cannot be decoded: {rows}")


if __name__ == "__main__":
    main()
