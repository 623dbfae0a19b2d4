"""Does style augmentation help? `moco_cifar10_cpu` without it and with each stylizer: equal budgets, several seeds, kNN and linear top-1.

    python -m benchmarks.style_augmentation [--data ../shared/data] [--seeds 3] [--epochs 2] [--shards 2]

Every run is one process on one thread; what is finished is kept in the results, so that a stopped call goes on. The published weights must be on
this machine (`ray-sassl weights fetch magenta`); its codes are computed at 96 px, which is ten times quicker than at 256 px.
`--experiment best.yaml` adds the stylizer and the strengths that a search has found.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import RESULTS, write_results
from ray_sassl.config.files import read_config
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluate.knn import Config as Knn
from ray_sassl.evaluate.linear import Config as Linear
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.launch import pretrain
from ray_sassl.run import find_checkpoint, load_backbone
from ray_sassl.scoring import load_evaluation_data, score, untrained_backbone

CELLS = {
    "no style augmentation": ["stylize=identity"],
    "swift": ["stylize=swift"],
    "color_statistics": ["stylize=color_statistics"],
    "magenta, codes at 96 px": ["stylize=magenta", "stylize.style_px=96"],
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    shards: Annotated[int, typer.Option(min=1, help="Of 6,250 training images each.")] = 2,
    experiment: Annotated[Path | None, typer.Option(help="A YAML file whose `stylize` and `sassl` are compared too.")] = None,
    out: Annotated[Path, typer.Option(help="Results, also those of earlier calls.")] = RESULTS / "style_augmentation.json",
) -> None:
    torch.set_num_threads(1)
    cells = CELLS | (_cell_of(experiment) if experiment else {})
    console = Console()
    budget = {"epochs": epochs, "shards": shards}
    runs: dict[str, dict[str, float]] = {}
    if out.exists() and (there := json.loads(out.read_text()))["budget"] == budget:
        runs = there["runs"]
    for seed in range(seeds):
        for name, overrides in {"untrained": None, **cells}.items():
            key = f"{name}; seed {seed}"
            if key in runs:
                continue
            began, cpu = time.monotonic(), time.process_time()
            runs[key] = _scores(_config(data, epochs, shards, seed, overrides or []), is_trained=overrides is not None)
            runs[key] |= {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}
            console.print(key, runs[key])
            write_results("style_augmentation", [], {"budget": budget, "runs": runs}, out)
    console.print(_table(runs, list(cells), seeds))


def _cell_of(experiment: Path) -> dict[str, list[str]]:
    tree = read_config(str(experiment)).model_dump(mode="json")
    return {tree["name"]: [f"{part}={json.dumps(tree[part])}" for part in ("stylize", "sassl")]}


def _config(data: Path, epochs: int, shards: int, seed: int, overrides: list[str]) -> ExperimentConfig:
    paths = f"{data}/cifar10/train-0000[0-{shards - 1}].parquet"
    return apply_overrides(
        load_experiment("moco_cifar10_cpu"),
        [
            f"data.path={paths}",
            f"evaluate.train={{path: '{paths}'}}",
            f"evaluate.test={{path: {data}/cifar10/test-00000.parquet}}",
            f"train.epochs={epochs}",
            "train.global_batch=128",
            "evaluate.online_rows=100",
            "scaling.num_workers=0",
            "scaling.threads_per_worker=1",
            f"seed={seed}",
            *overrides,
        ],
    )


def _scores(config: ExperimentConfig, is_trained: bool) -> dict[str, float]:
    """kNN and linear top-1 of the run's encoder."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = untrained_backbone(config)
        if is_trained:
            backbone = load_backbone(find_checkpoint(pretrain(config, folder).run_dir))[1]
        knn, linear = score(config, backbone, load_evaluation_data(config), [Knn(), Linear()])
        return {"knn_top1": knn["top1"], "linear_top1": linear["top1"]}


def _table(runs: dict[str, dict[str, float]], cells: list[str], seeds: int) -> Table:
    table = Table("", "kNN top-1", "linear top-1", "CPU-s of a run", title=f"Mean and standard deviation over {seeds} seeds")
    for name in ("untrained", *cells):
        rows = [runs[f"{name}; seed {seed}"] for seed in range(seeds)]
        table.add_row(name, *(_spread([row[key] for row in rows]) for key in ("knn_top1", "linear_top1")), f"{_mean(rows, 'cpu_s'):.0f}")
    return table


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{deviation}"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    typer.run(main)
