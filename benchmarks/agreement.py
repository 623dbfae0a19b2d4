"""What it costs that all ranks act at the same step on what one of them has noticed.

    python -m benchmarks.agreement [--ranks 8] [--steps 60] [--rounds 3] [--out FILE]

Ranks over gloo add up a gradient at every step, as DistributedDataParallel does. Each pauses for 30 ms at random: before the gradient,
or after it, where only an agreement that is waited for hands the pause on to the others. *none* has no agreement, *waits* a blocking
all-reduce over gloo's ring at every step, *asks* the loop's own, which is answered at the next step. Steps a second are compared within a
round, with the same pauses. Goal: at most 3 % slower than without.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from ray_sassl.train.agreement import Agreement
from ray_sassl.train.context import LocalContext, on_any_rank

PAUSE_S = 0.03
PAUSE_PROB = 0.15
KINDS = ("none", "waits", "asks")
NUM_FLAGS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (folder, args.ranks, args.steps, args.rounds), nprocs=args.ranks, start_method="spawn")
        rounds = torch.load(Path(folder) / "seconds.pt", weights_only=True)
    steps_per_s = {kind: statistics.median(args.steps / seconds[kind] for seconds in rounds) for kind in KINDS}
    loss = {kind: statistics.median(seconds[kind] / seconds["none"] for seconds in rounds) - 1 for kind in KINDS[1:]}
    table = Table("", "steps/s", "longer than without", title=f"{args.ranks} ranks with random pauses of {PAUSE_S * 1e3:.0f} ms")
    for kind in KINDS:
        table.add_row(kind, f"{steps_per_s[kind]:.2f}", f"{loss[kind]:.1%}" if kind in loss else "")
    Console().print(table)
    goal = Goal(f"share of a step's time that the agreement of {args.ranks} ranks costs", loss["asks"], "at most", 0.03)
    print(f"written to {write_results('agreement', [goal], {'steps_per_s': steps_per_s, 'loss': loss, 'rounds': rounds}, args.out)}")


def _rank(rank: int, folder: str, world_size: int, num_steps: int, num_rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    rounds = []
    for number in range(num_rounds):
        kinds = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
        pauses = np.random.default_rng((number, rank)).random((num_steps, 2)) < PAUSE_PROB
        rounds.append({kind: _seconds(kind, pauses, LocalContext(rank, world_size)) for kind in kinds})
    if rank == 0:
        torch.save(rounds, Path(folder) / "seconds.pt")
    dist.destroy_process_group()


def _seconds(kind: str, pauses: np.ndarray, context: LocalContext) -> float:
    gradient, agreement, flags = torch.zeros(10_000), Agreement(context, NUM_FLAGS), [False] * NUM_FLAGS
    dist.barrier()
    began = time.perf_counter()
    for before, after in pauses:
        time.sleep(PAUSE_S * before)
        dist.all_reduce(gradient)
        time.sleep(PAUSE_S * after)
        if kind == "waits":
            on_any_rank(flags, context)
        elif kind == "asks":
            agreement.exchange(flags, at_once=False)
    dist.barrier()
    seconds = time.perf_counter() - began
    agreement.settle()
    agreement.close()
    return seconds


if __name__ == "__main__":
    main()
