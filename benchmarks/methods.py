"""Every method's `*_cifar10_cpu` experiment at an equal small budget: kNN and linear top-1, beside the untrained encoder's.

    python -m benchmarks.methods [--data ../shared/data] [--seeds 1] [--epochs 1] [--shards 1] [--batch 64] [--cpus N]

An equal budget is equal images and steps, not equal seconds: methods with two networks or more views take longer, and the table says how long. It is
far from what the methods come to; what it shows is that each of them learns from the first minutes on, and which are slow to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.grid import SCORES, UNTRAINED, Budget, Cell, run_grid, run_key, table
from benchmarks.measuring import RESULTS
from ray_sassl.plugins import plugin_names


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    epochs: Annotated[float, typer.Option(min=0.1)] = 1,
    shards: Annotated[int, typer.Option(min=1, max=8, help="Of 6,250 training images each.")] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    scored: Annotated[int, typer.Option(min=100, help="Train images, and test images, to score on.")] = 2500,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Runs at a time; all CPUs where not given.")] = None,
    out: Annotated[Path, typer.Option(help="Results, also those of earlier calls.")] = RESULTS / "methods.json",
) -> None:
    console, budget = Console(), Budget(epochs, shards, batch, scored)
    cells = {name: Cell(f"{name}_cifar10_cpu") for name in method or plugin_names("ray_sassl.methods")}
    runs = run_grid("methods", cells, budget, seeds, data, out, console, cpus)
    console.print(table(f"{seeds} seeds; {budget}", cells, runs, seeds))
    for score in SCORES:
        untrained = max(runs[run_key(UNTRAINED, seed)][score] for seed in range(seeds))
        below = [name for name in cells if min(runs[run_key(name, seed)][score] for seed in range(seeds)) <= untrained]
        console.print(f"{score}: {', '.join(below) or 'no method'} not above the untrained encoder in every run")


if __name__ == "__main__":
    typer.run(main)
