"""Every method's `*_cifar10_cpu` experiment at an equal small budget: kNN and linear top-1, beside the untrained encoder's.

    python -m benchmarks.methods [--data ../shared/data] [--seeds 1] [--epochs 1] [--shards 1] [--batch 64] [--cpus N]
    python -m benchmarks.methods --gradients [--data ../shared/data] [--batch 64]

An equal budget is equal images and steps, not equal seconds: methods with two networks or more views take longer, and the table says how
long. It is far from what the methods come to; what it shows is that each of them learns from the first minutes on, and which are slow to.

The *gradients* are those of the backbone's weights at the first batch: how long they are, with the rate, says how far SGD steps. A method
whose gradients are much longer than the others' needs a smaller `loss_scale` or rate, or LARS.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.grid import SCORES, UNTRAINED, Budget, Cell, run_grid, run_key, table
from benchmarks.measuring import RESULTS
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.nn.method import StepOutput
from ray_sassl.nn.normalize import normalize
from ray_sassl.pipeline import local_batches
from ray_sassl.plugins import plugin_names
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import build_method, view_source
from ray_sassl.types import view_names


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    epochs: Annotated[float, typer.Option(min=0.1)] = 1,
    shards: Annotated[int, typer.Option(min=1, max=8, help="Of 6,250 training images each.")] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    scored: Annotated[int, typer.Option(min=100, help="Train images, and test images, to score on.")] = 2500,
    gradients: Annotated[bool, typer.Option("--gradients", help="How long the first gradients are, not the scores.")] = False,
    method: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    cpus: Annotated[int | None, typer.Option(min=0, help="Runs at a time; all CPUs where not given; 0: in this process.")] = None,
    out: Annotated[Path, typer.Option(help="Results, also those of earlier calls.")] = RESULTS / "methods.json",
) -> None:
    console, budget = Console(), Budget(epochs, shards, batch, scored)
    cells = {name: Cell(f"{name}_cifar10_cpu") for name in method or plugin_names("ray_sassl.methods")}
    if gradients:
        console.print(gradient_table({name: cell.config(data, budget, 0) for name, cell in cells.items()}))
        return
    runs = run_grid("methods", cells, budget, seeds, data, out, console, cpus)
    console.print(table(f"{seeds} seeds; {budget}", cells, runs, seeds))
    for score in SCORES:
        untrained = max(runs[run_key(UNTRAINED, seed)][score] for seed in range(seeds))
        below = [name for name in cells if min(runs[run_key(name, seed)][score] for seed in range(seeds)) <= untrained]
        console.print(f"{score}: {', '.join(below) or 'no method'} not above the untrained encoder in every run")


def gradient_table(configs: dict[str, ExperimentConfig]) -> Table:
    """The loss of each run's first batch, and the length of its gradient."""
    torch.set_num_threads(1)
    shown = Table("method", "loss", "of an encoder that tells nothing apart", "length of the backbone's gradient", "peak rate x length")
    for name, config in configs.items():
        output, length = first_gradient(config)
        rate = config.optim.base_lr * config.train.global_batch / 256
        shown.add_row(name, f"{output.loss.item():.3g}", f"{output.chance_loss:.3g}", f"{length:.2f}", f"{rate * length:.3f}")
    return shown


def first_gradient(config: ExperimentConfig) -> tuple[StepOutput, float]:
    """What the method says of the first batch, and the length of the gradient of the backbone's weights."""
    with tempfile.TemporaryDirectory() as folder:
        index = prepare_run_dir(config, folder, resume=False)
        quarantine = Quarantine(index.num_rows, config.data.max_bad_fraction)
        source = view_source(config, folder)
        batch = next(local_batches(source, epochs=1, batch_size=config.train.global_batch, on_bad=quarantine.add))
    images = [torch.from_numpy(batch[name]).permute(0, 3, 1, 2) for name in view_names(batch)]
    views = [normalize(view, config.train.pixel_mean, config.train.pixel_std) for view in images]
    method = build_method(config)
    output = method(views, torch.Generator().manual_seed(config.seed), torch.from_numpy(batch["sample_id"]))
    output.loss.backward()
    squares = [weight.grad.square().sum() for weight in method.backbone.parameters() if weight.grad is not None]
    return output, float(torch.stack(squares).sum().sqrt())


if __name__ == "__main__":
    typer.run(main)
