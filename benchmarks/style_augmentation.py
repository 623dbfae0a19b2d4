"""Does style augmentation help? `moco_cifar10_cpu` without it and with each stylizer: equal budgets, several seeds, kNN and linear top-1.

    python -m benchmarks.style_augmentation [--data ../shared/data] [--seeds 3] [--epochs 2] [--shards 2]

Runs are tasks of one thread each on their own Ray, as many at a time as there are CPUs; finished runs are kept in the results, so that a
second call continues after an interruption. The published weights must be on this machine (`ray-sassl weights fetch magenta`); their codes
are computed at 96 px, which is ten times faster than at 256 px. `--experiment best.yaml` adds the stylizer and the strengths that a search
has found; `--cell NAME` leaves out the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.grid import Budget, Cell, run_grid, table
from benchmarks.measuring import RESULTS
from ray_sassl.config.files import read_config

WARMUP = "optim.warmup_epochs=0.5"
CELLS = {
    "no style augmentation": Cell("moco_cifar10_cpu", (WARMUP,)),
    "swift": Cell("moco_cifar10_cpu", (WARMUP, "stylize=swift")),
    "color_statistics": Cell("moco_cifar10_cpu", (WARMUP, "stylize=color_statistics")),
    "magenta, codes at 96 px": Cell("moco_cifar10_cpu", (WARMUP, "stylize=magenta", "stylize.style_px=96")),
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    shards: Annotated[int, typer.Option(min=1, help="Of 6,250 training images each.")] = 2,
    cpus: Annotated[int | None, typer.Option(min=1, help="Runs at a time; all CPUs where not given.")] = None,
    experiment: Annotated[Path | None, typer.Option(help="A YAML file whose `stylize` and `sassl` are compared too.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Only this one of the stylizers; may be given several times.")] = None,
    out: Annotated[Path, typer.Option(help="Results, also those of earlier calls.")] = RESULTS / "style_augmentation.json",
) -> None:
    console, budget = Console(), Budget(epochs, shards, 128)
    if unknown := set(cell or ()) - set(CELLS):
        raise SystemExit(f"no cell is called {', '.join(sorted(unknown))}; there are {', '.join(CELLS)}")
    cells = {name: CELLS[name] for name in cell or CELLS} | (_cell_of(experiment) if experiment else {})
    runs = run_grid("style_augmentation", cells, budget, seeds, data, out, console, cpus)
    console.print(table(f"Mean and standard deviation over {seeds} seeds", cells, runs, seeds))


def _cell_of(experiment: Path) -> dict[str, Cell]:
    tree = read_config(str(experiment)).model_dump(mode="json")
    overrides = (f"{part}={json.dumps(tree[part])}" for part in ("stylize", "sassl"))
    return {tree["name"]: Cell("moco_cifar10_cpu", (WARMUP, *overrides))}


if __name__ == "__main__":
    typer.run(main)
