"""Tables of encoders: many configs at one small budget, as one Ray job that fills the machine with runs of one thread each.

What is finished is kept in the results file, so that a stopped call goes on, and a cell that has changed is run anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.measuring import write_results
from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import FixedFeatures
from ray_sassl.evaluation.datasets import LabeledImages, load_evaluation_data
from ray_sassl.evaluation.features import extract_features
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.subject import untrained_backbone
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.launch import pretrain, with_absolute_paths
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import load_backbone

UNTRAINED = "untrained"
SCORES: dict[str, Knn | Linear] = {"knn_top1": Knn(), "linear_top1": Linear()}
Runs = dict[str, dict[str, Any]]
"""By `run_key`: the scores of a run, its seconds, and the digest of its config."""


@dataclass(frozen=True)
class Budget:
    """What each run of a table has.

    Attributes:
        epochs: Passes over the images; a tenth of them is warm-up.
        shards: Of CIFAR-10's training images, 6,250 each; an encoder is trained on them, and its scores are fitted on them.
        global_batch: Images of a step.
        scored_images: At most so many train and so many test images are scored on; all where not given. 2,500 leave a standard error of a
            point and save a third of the shortest runs' time.
    """

    epochs: float
    shards: int
    global_batch: int
    scored_images: int | None = None


@dataclass(frozen=True)
class Cell:
    """One row of a table: an experiment with changes."""

    experiment: str
    overrides: tuple[str, ...] = ()

    def config(self, data: Path, budget: Budget, seed: int) -> ExperimentConfig:
        """Of one run; `data` holds `cifar10/`."""
        paths = f"{data}/cifar10/train-0000[0-{budget.shards - 1}].parquet"
        common = [
            f"data.path={paths}",
            f"evaluate.train={{path: '{paths}'}}",
            f"evaluate.test={{path: '{data}/cifar10/test-*.parquet'}}",
            "evaluate.online_rows=100",
            "scaling.num_workers=0",
            "scaling.threads_per_worker=1",
            f"train.epochs={budget.epochs}",
            f"optim.warmup_epochs={budget.epochs / 10}",
            f"train.global_batch={budget.global_batch}",
            f"seed={seed}",
        ]
        return with_absolute_paths(apply_overrides(load_experiment(self.experiment), [*common, *self.overrides]))


def run_grid(
    name: str, cells: Mapping[str, Cell], budget: Budget, seeds: int, data: Path, out: Path, console: Console, num_cpus: int | None = None
) -> Runs:
    """The runs of all cells and seeds, and of the untrained encoder of each seed.

    Args:
        num_cpus: Runs at a time, by default as many as there are CPUs; 0 does them in order in this process, without Ray.

    Raises:
        SystemExit: some runs failed; the others are in the results.
    """
    wanted = dict(_runs(cells, budget, seeds, data))
    runs: Runs = {}
    if out.exists() and (there := json.loads(out.read_text()))["budget"] == asdict(budget):
        runs = there["runs"]
    runs = {key: run for key, run in runs.items() if key in wanted and run.get("config") == _digest(key, wanted[key])}
    todo = {key: config for key, config in wanted.items() if key not in runs}
    failed = []
    console.print(f"{name}: {len(todo)} of {len(wanted)} runs to do")
    for number, (key, scores) in enumerate(_done(todo, budget, num_cpus), 1):
        if isinstance(scores, RayError):
            failed.append(key)
            console.print(f"{key} failed: {scores}", markup=False)
            continue
        runs[key] = scores | {"config": _digest(key, wanted[key])}
        console.print(f"{key}: {runs[key]}; {len(todo) - number} left", markup=False)
        write_results(name, [], {"budget": asdict(budget), "runs": dict(sorted(runs.items()))}, out)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}; call again to try them once more")
    return runs


def _done(todo: Mapping[str, ExperimentConfig], budget: Budget, num_cpus: int | None) -> Iterator[tuple[str, dict[str, float] | RayError]]:
    """Each run's scores as it ends, or why it failed."""
    arguments = {key: (to_yaml(config), not key.startswith(UNTRAINED), budget.scored_images) for key, config in todo.items()}
    if num_cpus == 0:
        for key, of_run in arguments.items():
            yield key, scores_of(*of_run)
        return
    with ray_session(num_cpus=num_cpus):
        task = ray.remote(num_cpus=1)(scores_of)
        keys = {task.remote(*of_run): key for key, of_run in arguments.items()}
        while keys:
            (done,), _ = ray.wait(list(keys))
            key = keys.pop(done)
            try:
                scores = ray.get(done)
            except RayError as error:
                scores = error
            yield key, scores


def scores_of(config_yaml: str, is_trained: bool, scored_images: int | None) -> dict[str, float]:
    """kNN and linear top-1 of the run's encoder, trained in this process or as it is initialized, and what that took."""
    torch.set_num_threads(1)
    config = from_yaml(config_yaml)
    began, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        backbone = untrained_backbone(config)
        if is_trained:
            backbone = load_backbone(find_checkpoint(pretrain(config, folder).run_dir))[1]
        features = _features(config, backbone, scored_images)
    scores = {name: protocol.build().evaluate(features).scores["top1"].value for name, protocol in SCORES.items()}
    return scores | {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}


def _features(config: ExperimentConfig, backbone: nn.Module, limit: int | None) -> FixedFeatures:
    """Of the first `limit` train and test images."""
    data = load_evaluation_data(config)
    splits = [LabeledImages(split.config, split.view, limit) for split in (data.train, data.test)]
    mean, std = config.train.pixel_mean, config.train.pixel_std
    return FixedFeatures(*(extract_features(backbone, images, mean, std, torch.device("cpu")) for images in splits))


def run_key(cell: str, seed: int) -> str:
    """The name of a run in the results."""
    return f"{cell}; seed {seed}"


def table(title: str, cells: Mapping[str, Cell], runs: Runs, seeds: int, columns: Mapping[str, tuple[str, ...]] | None = None) -> Table:
    """The mean and standard deviation over the seeds of every row's scores.

    Args:
        columns: Cells to show in the place of a row's name: each heading with the rows' entries.
    """
    columns = columns or {"": (UNTRAINED, *cells)}
    shown = Table(*columns, "kNN top-1", "linear top-1", "CPU-s of a run", title=title)
    for number, cell in enumerate((UNTRAINED, *cells)):
        rows = [runs[run_key(cell, seed)] for seed in range(seeds)]
        scores = (_spread([row[name] for row in rows]) for name in SCORES)
        shown.add_row(*(entries[number] for entries in columns.values()), *scores, f"{statistics.mean(row['cpu_s'] for row in rows):.0f}")
    return shown


def _runs(cells: Mapping[str, Cell], budget: Budget, seeds: int, data: Path) -> Iterator[tuple[str, ExperimentConfig]]:
    """All runs, seed by seed."""
    for seed in range(seeds):
        yield run_key(UNTRAINED, seed), next(iter(cells.values())).config(data, budget, seed)
        for name, cell in cells.items():
            yield run_key(name, seed), cell.config(data, budget, seed)


def _digest(key: str, config: ExperimentConfig) -> str:
    """Of what decides a run's scores; where the data lie, or are kept, does not, and how an encoder would be trained only where it is."""
    tree = config.model_dump(mode="json", exclude={"evaluate", "name"})
    tree["data"] = {name: value for name, value in tree["data"].items() if name != "cache_gb"}
    tree["data"]["path"] = [Path(path).name for path in config.data.paths]
    if key.startswith(UNTRAINED):
        tree = {name: tree[name] for name in ("backbone", "seed", "data")}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{deviation}"
