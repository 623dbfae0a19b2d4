"""What a search costs beside its trials, what stopping early saves, and how busy it keeps many GPUs.

    python -m benchmarks.search [cost] [asha] [simulation] [--data ../shared/data]

Parts that are not named keep their earlier results; without a name, `cost` and `simulation` are measured.

cost: wall and CPU-seconds of a few trials of a minute or more through `search`, of every process of it, against the same runs one after the
    other
in one process. Goal: at most 1.15 times the CPU-seconds. Run it on an idle machine.
asha: a study first come, first served of learning rates and temperatures on a part of CIFAR-10 (about a quarter of an hour of a core; kept
    in `--study-dir` and
continued where it was stopped), whose curves ASHA then sees in many orders: how much of the training it needs, what the best trial loses by
it, and what both ways need until an equally good trial; once where it may stop a trial after its first evaluation, whose score is still
that of the untrained encoder, and once after a third of them.
simulation: 200 trials whose evaluations are sleeps as long as those of `cost`, on a Ray that pretends to have 16 GPUs. Goal: 95 % of GPU
    time in use
while there are trials to start. Each GPU's actor is a process that imports torch: two cores start 16 of them slowly, and a free actor that
takes over a trial ends the one that was still starting for it.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import RESULTS, Goal, cpu_seconds, tree, write_results
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.tune.scheduler import build_scheduler
from ray_sassl.orchestrate.tune.search import search
from ray_sassl.orchestrate.tune.trial import EVALUATION
from ray_sassl.study.record import StudyConfig, TrialRecord, read_trials
from ray_sassl.study.searcher import suggest
from ray_sassl.study.space import Float, SearchSpace
from ray_sassl.types import RunResult

PARTS = ("cost", "asha", "simulation")
COST_TRIALS, COST_EVALUATIONS, COST_EVALUATION_STEPS = 3, 3, 12
ASHA_TRIALS, ASHA_EVALUATIONS, ASHA_EVALUATION_STEPS, ASHA_ORDERS, ASHA_GRACES = 27, 9, 11, 200, (1, 3)
SIMULATED_TRIALS, SIMULATED_EVALUATIONS, SIMULATED_GPUS = 200, 3, 16
_LOOK_EVERY_S = 0.2


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="cost, asha, simulation")] = None,
    data: Annotated[Path, typer.Option(help="Folder with cifar10/.")] = Path("../shared/data"),
    study_dir: Annotated[Path, typer.Option(help="Where the study of `asha` is kept.")] = Path("studies/asha-against-fifo"),
    evaluation_s: Annotated[float | None, typer.Option(help="Length of a simulated evaluation. [default: as measured by cost]")] = None,
    out: Annotated[Path, typer.Option(help="Results, also those of earlier calls.")] = RESULTS / "search.json",
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if child:
        _run_child(child, cost_study(data), folder)
        return
    parts = parts or ["cost", "simulation"]
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    results = {name: found for name, found in (json.loads(out.read_text()) if out.exists() else {}).items() if name in PARTS}
    for part in PARTS:
        if part in parts:
            if part == "cost":
                results[part] = cost(data)
            elif part == "asha":
                results[part] = asha(data, study_dir)
            else:
                results[part] = simulation(evaluation_s or results["cost"]["evaluation_s"])
            print(f"written to {write_results('search', goals(results), results, out)}")
    Console().print(_table(results))


def goals(results: dict[str, Any]) -> list[Goal]:
    """The claims about the parts that have been measured."""
    found = []
    if "cost" in results:
        found.append(Goal("CPU-s of a search over those of its runs in one process", results["cost"]["cpu_ratio"], "at most", 1.15))
    if "simulation" in results:
        found.append(Goal("share of 16 GPUs' time in use, in simulation", results["simulation"]["share_in_use"], "at least", 0.95))
    return found


# What orchestration costs


def cost_study(data: Path) -> StudyConfig:
    """A few runs of the CIFAR-10 form for CPUs, one thread each, a minute or more long; only p differs."""
    shards, test = f"{data.resolve()}/cifar10/train-0000[0-1].parquet", f"{data.resolve()}/cifar10/test-00000.parquet"
    base = apply_overrides(
        load_experiment("moco_cifar10_cpu_sassl"),
        [
            f"data.path={shards}",
            f"evaluate.train={{path: '{shards}'}}",
            f"evaluate.test={{path: {test}}}",
            "evaluate.online_rows=1000",
            f"train.epochs={COST_EVALUATIONS * COST_EVALUATION_STEPS * 256 / 12500}",
            f"train.evaluate_every={COST_EVALUATION_STEPS}",
            "stylize=color_statistics",
            "scaling.num_workers=0",
            "scaling.threads_per_worker=1",
        ],
    )
    return _study("cost", base, SearchSpace(parameters=(Float(path="sassl.prob", low=0.3, high=0.9),)), COST_TRIALS)


def cost(data: Path) -> dict[str, Any]:
    """Both ways, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for way in ("plain", "search"):
            command = [sys.executable, "-m", "benchmarks.search", "--child", way, "--folder", f"{folder}/{way}", "--data", str(data)]
            measured[way] = _measure(command)
        trials = read_trials(f"{folder}/search")
    assert all(trial.state == "finished" for trial in trials)
    inside = sum(trial.cpu_s or 0.0 for trial in trials)
    lengths = [later - earlier for trial in trials for earlier, later in zip([0.0, *_walls(trial)], _walls(trial), strict=False)]
    return {
        "trials": COST_TRIALS,
        "trial_wall_s": [round(trial.wall_s, 1) for trial in trials],
        "evaluation_s": round(statistics.mean(lengths), 2),
        **{f"{way}_{name}": round(value, 1) for way, values in measured.items() for name, value in values.items()},
        "search_outside_trials_cpu_s": round(measured["search"]["cpu_s"] - inside, 1),
        "cpu_ratio": measured["search"]["cpu_s"] / measured["plain"]["cpu_s"],
        "wall_ratio": measured["search"]["wall_s"] / measured["plain"]["wall_s"],
    }


def _walls(trial: TrialRecord) -> list[float]:
    return [evaluation.wall_s for evaluation in trial.curve]


def _run_child(way: str, study: StudyConfig, folder: str) -> None:
    torch.set_num_threads(1)
    if way == "search":
        search(study, folder)
        return
    for number in range(study.num_trials):
        point = suggest(study.space, study.base, [], number, seed=study.seed, searcher=study.searcher)
        assert point is not None
        pretrain(study.space.config(study.base, point), f"{folder}/{number}")


def _measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of the command and of all that it starts; what a process does between the last look and its end is missed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    known: dict[int, float] = {}
    while process.poll() is None:
        known |= cpu_seconds(list({pid for root in (process.pid, *known) for pid in tree(root)}))
        time.sleep(_LOOK_EVERY_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return {"wall_s": time.perf_counter() - began, "cpu_s": sum(known.values())}


# What stopping early saves


def asha_study(data: Path) -> StudyConfig:
    """SimCLR's first epoch on a part of CIFAR-10, which the learning rate decides; searched at random and without early stopping."""
    shard, test = f"{data.resolve()}/cifar10/train-00000.parquet", f"{data.resolve()}/cifar10/test-00000.parquet"
    base = apply_overrides(
        load_experiment("simclr_cifar10_cpu"),
        [
            f"data.path={shard}",
            f"evaluate.train={{path: '{shard}'}}",
            f"evaluate.test={{path: {test}}}",
            "evaluate.online_rows=1000",
            "train.global_batch=64",
            f"train.epochs={ASHA_EVALUATIONS * ASHA_EVALUATION_STEPS * 64 / 6250}",
            f"train.evaluate_every={ASHA_EVALUATION_STEPS}",
            "optim.warmup_epochs=0.1",
            "scaling.num_workers=0",
            "scaling.threads_per_worker=1",
        ],
    )
    space = SearchSpace(
        parameters=(
            Float(path="optim.base_lr", low=1e-3, high=2.0, log=True),
            Float(path="method.temperature", low=0.05, high=2.0, log=True),
        )
    )
    return _study("asha", base, space, ASHA_TRIALS)


def asha(data: Path, study_dir: Path) -> dict[str, Any]:
    """The study, and its trials as ASHA would have run them one after the other, in many orders."""
    study = asha_study(data)
    search(study, str(study_dir), resume=(study_dir / "study.yaml").exists())
    curves = [[evaluation.metrics["knn_top1"] for evaluation in trial.curve] for trial in read_trials(str(study_dir))]
    return {
        "trials": len(curves),
        "evaluations": ASHA_EVALUATIONS,
        "last": [round(curve[-1], 4) for curve in curves],
        "orders": ASHA_ORDERS,
        "by_grace": {grace: _saving(study, curves, grace) for grace in ASHA_GRACES},
    }


def _saving(study: StudyConfig, curves: list[list[float]], grace: int) -> dict[str, float]:
    """What ASHA needs and loses, on the mean over many orders of the trials."""
    best = max(curve[-1] for curve in curves)
    rng = np.random.default_rng(0)
    spent, lost, until_best, until_as_good = [], [], [], []
    for _ in range(ASHA_ORDERS):
        trials = _stopped_by_asha(study, grace, [curves[number] for number in rng.permutation(len(curves))])
        lengths = [length for length, _ in trials]
        lasts = [curve[-1] if length == len(curve) else -1.0 for length, curve in trials]
        found = int(np.argmax(lasts))
        as_good = next(number for number, (_, curve) in enumerate(trials) if curve[-1] >= lasts[found])
        spent.append(sum(lengths) / sum(len(curve) for curve in curves))
        lost.append(best - lasts[found])
        until_best.append(sum(lengths[: found + 1]))
        until_as_good.append((as_good + 1) * ASHA_EVALUATIONS)
    return {
        "share_of_training": statistics.mean(spent),
        "same_best": statistics.mean(loss == 0 for loss in lost),
        "mean_loss": statistics.mean(lost),
        "largest_loss": max(lost),
        "evaluations_until_its_best": statistics.mean(until_best),
        "evaluations_until_as_good_without": statistics.mean(until_as_good),
    }


def _stopped_by_asha(study: StudyConfig, grace: int, curves: list[list[float]]) -> list[tuple[int, list[float]]]:
    """How many evaluations each trial gets, and its curve."""
    space = study.space.model_copy(update={"grace": grace})
    scheduler = build_scheduler(study.model_copy(update={"scheduler": "asha", "space": space}), ASHA_EVALUATIONS)
    lengths = []
    for number, curve in enumerate(curves):
        trial: Any = TrialOfCurve(f"trial-{number}")
        scheduler.on_trial_add(_NOBODY, trial)
        length = 0
        for value in curve:
            length += 1
            decision = scheduler.on_trial_result(_NOBODY, trial, {EVALUATION: length, "knn_top1": value})
            if decision == TrialScheduler.STOP:
                break
        lengths.append((length, curve))
    return lengths


class TrialOfCurve:
    """What ASHA asks of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


_NOBODY: Any = None
"""ASHA asks nothing of Tune's controller."""


# How busy many GPUs are kept


class SleepingRun:
    """Stands for a run: each evaluation is a sleep, about as long as given, and the metric follows from p; the run's time is written
    down."""

    def __init__(self, evaluation_s: float) -> None:
        self.evaluation_s = evaluation_s

    def __call__(self, config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: threading.Event) -> RunResult:
        began = time.time()
        Path(run_dir, "config.yaml").write_text(to_yaml(config))
        draws = np.random.default_rng(int(config.sassl.prob * 1e6))
        metrics: dict[str, float] = {}
        status = "finished"
        for step in range(1, SIMULATED_EVALUATIONS + 1):
            if stop.wait(self.evaluation_s * draws.uniform(0.8, 1.2)):
                status = "interrupted"
                break
            metrics = {"step": step, "epoch": step, "knn_top1": (1 - abs(config.sassl.prob - 0.7)) * step / 3 + 0.02 * draws.normal()}
            watch(ProgressUpdate([metrics]))
        Path(run_dir, "time.json").write_text(json.dumps({"began": began, "ended": time.time(), "pid": os.getpid()}))
        return RunResult(status, int(metrics.get("step", 0)), run_dir, None, metrics)


def simulation(evaluation_s: float) -> dict[str, Any]:
    """Optuna and ASHA over 200 sleeping trials."""
    base = load_experiment("demo")
    base = apply_overrides(
        base,
        [
            f"train.epochs={SIMULATED_EVALUATIONS * base.train.global_batch / 5120}",
            "train.evaluate_every=1",
            "scaling.num_workers=0",
        ],
    )
    space = SearchSpace(parameters=(Float(path="sassl.prob", low=0, high=1),))
    study = _study("simulation", base, space, SIMULATED_TRIALS, searcher="optuna", scheduler="asha")
    ray.init(address="local", num_cpus=SIMULATED_GPUS, num_gpus=SIMULATED_GPUS, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            began, cpu = time.time(), time.process_time()
            state = search(study, folder, run=SleepingRun(evaluation_s))
            driver_cpu_s, wall_s = time.process_time() - cpu, time.time() - began
            times = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("trials/*/time.json"))]
    finally:
        ray.shutdown()
    assert len(times) == SIMULATED_TRIALS
    return {
        "trials": SIMULATED_TRIALS,
        "gpus": SIMULATED_GPUS,
        "evaluation_s": evaluation_s,
        "mean_trial_s": statistics.mean(t["ended"] - t["began"] for t in times),
        "stopped_early": sum(trial.state == "stopped" for trial in state.records),
        "wall_s": wall_s,
        "driver_cpu_s_per_trial": driver_cpu_s / SIMULATED_TRIALS,
        **_use(times),
    }


def _use(times: list[dict[str, float]]) -> dict[str, float]:
    """Shares of GPU time in use, and the time that a GPU waits between two trials."""
    starts = sorted(t["began"] for t in times)

    def share(first: float, last: float) -> float:
        busy = sum(max(0.0, min(t["ended"], last) - max(t["began"], first)) for t in times)
        return busy / (SIMULATED_GPUS * (last - first))

    by_actor = defaultdict(list)
    for t in times:
        by_actor[t["pid"]].append(t)
    gaps = []
    for its in by_actor.values():
        its.sort(key=lambda t: t["began"])
        gaps += [later["began"] - earlier["ended"] for earlier, later in itertools.pairwise(its)]
    return {
        "actors": len(by_actor),
        "share_in_use": share(starts[SIMULATED_GPUS - 1], starts[-1]),
        "share_in_use_with_start_and_end": share(starts[0], max(t["ended"] for t in times)),
        "gpu_waits_s_per_trial": statistics.mean(gaps),
        "gpu_waits_s_median": statistics.median(gaps),
        "all_actors_up_after_s": max(its[0]["began"] for its in by_actor.values()) - starts[0],
    }


def _study(
    name: str, base: ExperimentConfig, space: SearchSpace, trials: int, searcher: str = "random", scheduler: str = "fifo"
) -> StudyConfig:
    concurrent = None if name == "simulation" else 1
    return StudyConfig(
        name=name,
        base=base,
        space=space,
        objectives=("knn_top1",),
        searcher=searcher,
        scheduler=scheduler,
        num_trials=trials,
        max_concurrent=concurrent,
    )


def _table(results: dict[str, Any]) -> Table:
    table = Table("part", "what", "measured", title="Search")
    for part in PARTS:
        for name, value in _flat(results.get(part, {})):
            table.add_row(part, name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _flat(results: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in results.items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", found) for inner, found in _flat(value))
        else:
            yield str(name), value


if __name__ == "__main__":
    typer.run(main)
