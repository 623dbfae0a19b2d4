"""What does feature augmentation cost, and does it help?

    python -m benchmarks.feature_augmentation [--rounds 7]
    python -m benchmarks.feature_augmentation --table [--data ../shared/data] [--seeds 2] [--epochs 0.5] [--shards 1] [--batch 64] [--cpus
    N]

*Cost* is a training step of a `*_cifar10_cpu` experiment with an augmentation over the same step of the plain form: CPU-seconds on one
thread, the forms taking turns, medians of the rounds' ratios. The plain form is the method itself where the architecture adds no predictor
(MoCo, `basic`), and the method with the predictor and `identity` where it does (SimCLR, `parallel_predictor`); what that predictor costs is
shown by itself. Goals: at most 1.03, and 1.10 for `nearest` among 16,384 embeddings of width 128.

The *table* is architecture x augmentation x stop-gradient x K on `simclr_cifar10_cpu` at an equal small budget, whose cells are chosen, not
the full
product: kNN and linear top-1 of each, as one Ray job that fills the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.grid import Budget, Cell, run_grid, table
from benchmarks.measuring import RESULTS, Goal, write_results
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.experiments import load_experiment
from ray_sassl.runs.process import build_method

AUGMENTATIONS = {
    "mask": "mask",
    "noise": "noise",
    "interpolate": "interpolate",
    "extrapolate": "extrapolate",
    "swap": "swap",
    "nearest": "{name: nearest, support_size: 16384}",
}
GOALS = {name: 1.10 if name == "nearest" else 1.03 for name in AUGMENTATIONS}
PLACES = {"moco": "basic", "simclr": "parallel_predictor"}
"""The architecture in which each method's cost is measured."""

_NEAREST = "{name: nearest, support_size: 4096}"
ROWS: dict[str, tuple[str, str, bool, int, str]] = {
    "predictor alone": ("parallel_predictor", "identity", True, 1, "mean"),
    "parallel, nearest": ("parallel_predictor", _NEAREST, True, 1, "mean"),
    "parallel, mask": ("parallel_predictor", "mask", True, 1, "mean"),
    "parallel, noise": ("parallel_predictor", "noise", True, 1, "mean"),
    "parallel, interpolate": ("parallel_predictor", "interpolate", True, 1, "mean"),
    "parallel, extrapolate": ("parallel_predictor", "extrapolate", True, 1, "mean"),
    "parallel, swap": ("parallel_predictor", "swap", True, 1, "mean"),
    "parallel, mask, 4 free": ("parallel_predictor", "mask", True, 4, "free"),
    "parallel, mask, gradient": ("parallel_predictor", "mask", False, 1, "mean"),
    "pre, mask": ("pre_predictor", "mask", True, 1, "mean"),
    "post, mask": ("post_predictor", "mask", True, 1, "mean"),
    "basic, mask": ("basic", "mask", True, 1, "mean"),
}
"""Architecture, augmentation, stop-gradient, K and its reduction of the table's cells, beside the plain method."""


def main(
    show_table: Annotated[bool, typer.Option("--table", help="The table of scores, not the costs.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of the costs.")] = 7,
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    epochs: Annotated[float, typer.Option(min=0.1)] = 0.5,
    shards: Annotated[int, typer.Option(min=1, max=8, help="Of 6,250 training images each.")] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    scored: Annotated[int, typer.Option(min=100, help="Train images, and test images, to score on.")] = 2500,
    cpus: Annotated[
        int | None, typer.Option(min=0, help="Runs of the table at a time; all CPUs where not given; 0: in this process.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results, also those of earlier calls.")] = None,
) -> None:
    if show_table:
        path = out or RESULTS / "feature_augmentation_table.json"
        show_scores(Budget(epochs, shards, batch, scored), seeds, data, path, cpus)
    else:
        measure_costs(rounds, out)


def show_scores(budget: Budget, seeds: int, data: Path, out: Path, cpus: int | None) -> None:
    """The table of scores."""
    console = Console()
    cells = {"plain": Cell("simclr_cifar10_cpu")} | {name: Cell("simclr_cifar10_cpu", _overrides(*row)) for name, row in ROWS.items()}
    runs = run_grid("feature_augmentation", cells, budget, seeds, data, out, console, cpus)
    entries = [("", "", "", ""), ("none", "", "", ""), *(_entries(*row) for row in ROWS.values())]
    headings = ("architecture", "augmentation", "stop-gradient", "K")
    columns = dict(zip(headings, zip(*entries, strict=True), strict=True))
    columns = {"": ("untrained", "SimCLR", *[""] * len(ROWS)), **columns}
    console.print(table(f"Mean and standard deviation over {seeds} seeds; {budget}", cells, runs, seeds, columns))


def _overrides(architecture: str, augmentation: str, stop_gradient: bool, num_samples: int, reduction: str) -> tuple[str, ...]:
    changes = [f"method.fa.augmentation={augmentation}", *_place(architecture)]
    if not stop_gradient:
        changes.append("method.fa.stop_gradient=false")
    if num_samples > 1:
        changes += [f"method.fa.num_samples={num_samples}", f"method.fa.reduction={reduction}"]
    return tuple(changes)


def _place(architecture: str) -> list[str]:
    """The architecture, its predictor as wide as in `simclr_fa_cifar10_cpu`."""
    width = [] if architecture == "basic" else ["method.predictor_hidden_size=512"]
    return [f"method.fa.architecture={architecture}", *width]


def _entries(architecture: str, augmentation: str, stop_gradient: bool, num_samples: int, reduction: str) -> tuple[str, str, str, str]:
    is_plain = augmentation == "identity"
    has_stop = architecture in ("basic", "parallel_predictor") and not is_plain
    stop = ("yes" if stop_gradient else "no") if has_stop else ""
    k = "" if is_plain else f"{num_samples}, {reduction}" if num_samples > 1 else "1"
    return architecture, "nearest" if augmentation == _NEAREST else augmentation, stop, k


def measure_costs(rounds: int, out: Path | None) -> None:
    """The table of costs."""
    torch.set_num_threads(1)
    results = {method: costs(method, architecture, rounds) for method, architecture in PLACES.items()}
    goals = [
        Goal(f"{method}, {PLACES[method]}: step with {name} over the plain one", figures["over_plain"], "at most", GOALS[name])
        for method, by_name in results.items()
        for name, figures in by_name.items()
        if name in GOALS
    ]
    shown = Table("method", "augmentation", "step, CPU-s", "over plain", "goal", title=f"Medians of {rounds} rounds, one thread")
    for method, by_name in results.items():
        for name, figures in by_name.items():
            goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
            shown.add_row(f"{method}, {PLACES[method]}", name, f"{figures['cpu_s']:.3f}", f"{figures['over_plain']:.3f}", goal)
    console = Console()
    console.print(shown)
    console.print(f"written to {write_results('feature_augmentation', goals, {'rounds': rounds, 'results': results}, out)}")


def costs(method: str, architecture: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Median CPU-seconds of a step in each form, and the median of its ratios to the plain form's."""
    fa = _place(architecture)
    forms = {"plain": []} | ({"identity": fa} if architecture != "basic" else {})
    plain = list(forms)[-1]
    forms |= {name: [f"method.fa.augmentation={augmentation}", *fa] for name, augmentation in AUGMENTATIONS.items()}
    steps = {name: training_step(f"{method}_cifar10_cpu", overrides) for name, overrides in forms.items()}
    for step in steps.values():
        step()
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        order = list(steps)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            began = time.process_time()
            steps[name]()
            cpu[name].append(time.process_time() - began)
    ratios = {name: [a / b for a, b in zip(cpu[name], cpu[plain], strict=True)] for name in steps}
    names = {"identity": "identity (the predictor alone)"}
    return {names.get(name, name): {"cpu_s": statistics.median(cpu[name]), "over_plain": statistics.median(ratios[name])} for name in steps}


def training_step(experiment: str, overrides: list[str]) -> Callable[[], None]:
    """One optimizer update of the experiment's method on views of noise, with sample ids."""
    config = apply_overrides(load_experiment(experiment), overrides)
    torch.manual_seed(0)
    method = build_method(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    shape = (config.train.global_batch, 3, config.views.size_px, config.views.size_px)
    views = [torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    sample_id = torch.arange(len(views[0]))

    def step() -> None:
        optimizer.zero_grad()
        method(views, generator, sample_id).loss.backward()
        optimizer.step()
        method.after_step(0.5)

    return step


if __name__ == "__main__":
    typer.run(main)
