"""From the command to the first training step, and the most memory that a run takes.

    python -m benchmarks.start [--data ../shared/data]

Runs `ray-sassl pretrain moco_cifar10_cpu` for a few steps on the CIFAR-10 shards, with one worker and with two. The first step is there
when `metrics.jsonl` has its line. CPU time until then is that of all processes of the command, by what they do; that of those that have
ended counts where they were started. Memory is that of all processes, shared pages counted once, looked at once a second from the first
step on.
Goals: at most 30 s on an idle machine; at most 6 GB with two workers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, command, cpu_seconds, memory_bytes, tree, write_results

STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures = {workers: measure(args.data, workers) for workers in (1, 2)}
    table = Table("workers", "to the first step, s", "CPU-s", "peak memory, GB", title="ray-sassl pretrain moco_cifar10_cpu")
    where = Table("workers", "process", "CPU-s", "processes", title="CPU time until the first step")
    for workers, (seconds, cpu, memory) in figures.items():
        total = sum(spent for spent, _ in cpu.values())
        table.add_row(str(workers), f"{seconds:.1f}", f"{total:.1f}", f"{memory / 1e9:.2f}")
        for kind, (spent, number) in sorted(cpu.items(), key=lambda item: -item[1][0]):
            where.add_row(str(workers), kind, f"{spent:.1f}", str(number))
    Console().print(table, where)
    goals = [
        Goal("s from the command to the first step, one worker", figures[1][0], "at most", 30.0),
        Goal("GB of memory at most, two workers", figures[2][2] / 1e9, "at most", 6.0),
    ]
    details = {f"{workers} workers": {"first_step_s": s, "cpu_s": cpu, "peak_bytes": b} for workers, (s, cpu, b) in figures.items()}
    print(f"written to {write_results('start', goals, details, args.out)}")


def measure(data: Path, num_workers: int) -> tuple[float, dict[str, tuple[float, int]], int]:
    """Seconds to the first step, the CPU-seconds and number of processes until then by what they do, and the most bytes of memory."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = [sys.executable, "-m", "ray_sassl.cli", "pretrain", "moco_cifar10_cpu", "--run-dir", str(run_dir)]
        words += [f"train.epochs={STEPS * 256 / 50_000}", f"scaling.num_workers={num_workers}", "scaling.cpus_per_worker=0.5"]
        began = time.perf_counter()
        environment = os.environ | {"RAY_SASSL_DATA": str(data.resolve())}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        first_step_s, cpu, peak = 0.0, {}, 0
        while process.poll() is None:
            if first_step_s:  # adding up memory takes CPU time, so it waits until the start has been timed
                peak = max(peak, memory_bytes(tree(process.pid)))
            elif has_a_step(run_dir / "metrics.jsonl"):
                first_step_s, cpu = time.perf_counter() - began, cpu_by_kind(process.pid)
            time.sleep(1.0 if first_step_s else 0.1)
        if process.returncode:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
        return first_step_s, cpu, peak


def cpu_by_kind(root: int) -> dict[str, tuple[float, int]]:
    """CPU-seconds of the processes below `root` and of those that they have waited for, and how many there are, by what they do."""
    found: dict[str, tuple[float, int]] = {}
    for pid, seconds in cpu_seconds(tree(root), ended=True).items():
        kind = kind_of(command(pid))
        spent, number = found.get(kind, (0.0, 0))
        found[kind] = spent + seconds, number + 1
    return found


def kind_of(words: str) -> str:
    """What a process does, by its title."""
    if "ray_sassl.cli" in words:
        return "the command"
    if words.startswith("ray::"):
        return words.split()[0].partition(".")[0].partition("(")[0]
    if "/forking/" in words:
        return "server of forked workers" if "server.py" in words else "starts of workers"
    names = ("raylet", "gcs_server", "dashboard/agent", "runtime_env/agent", "dashboard", "log_monitor", "monitor.py", "default_worker")
    return next((name for name in names if name in words.replace("/raylet/raylet ", "raylet ", 1)), "other")


def has_a_step(metrics: Path) -> bool:
    return metrics.exists() and metrics.stat().st_size > 0


if __name__ == "__main__":
    main()
