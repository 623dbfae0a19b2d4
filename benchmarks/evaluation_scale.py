"""What evaluating costs at ImageNet's size: memory and CPU-minutes of kNN, linear and few-shot on 1,281,167 x 2,048 features.

    python -m benchmarks.evaluation_scale [--rows 1281167] [--test-rows 50000] [--width 2048] [--classes 1000] [--protocol knn ...]
        [--folder FOLDER] [--max-iterations 20] [--epochs 1] [--num-draws 5] [--num-threads N] [--out FILE]

The features are made up: classes are clouds in 64 dimensions, seen through a random layer with a rectifier. They are written as `evaluate`
keeps them, a float16 file for each split (5.2 GB and 0.2 GB at full size), to the folder, and are used again if they are there. Each
protocol runs in a process of its own, whose peak of resident memory (which counts pages of the mapped files while they are looked at) and
CPU time are read at its end; what a process holds before it has seen a feature is given beside it. L-BFGS and SGD take passes over all
rows, and what a pass costs does not depend on how many there are: give `--max-iterations` and `--epochs` as the time allows. Goal: at most
8 GB each.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results

ROWS, TEST_ROWS, WIDTH, CLASSES = 1_281_167, 50_000, 2048, 1000
PROTOCOLS = ("knn", "linear", "sgd", "few_shot")
GOAL_GB = 8.0
_LATENT, _SPREAD, _PORTION = 64, 1.6, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("features-of-scale"))
    parser.add_argument("--max-iterations", type=int, default=20, help="of L-BFGS")
    parser.add_argument("--epochs", type=int, default=1, help="of SGD")
    parser.add_argument("--num-draws", type=int, default=5, help="of few-shot, for each of 1, 5 and 10 images a class")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=("make", *PROTOCOLS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(make(args) if args.child == "make" else evaluate(args.child, args)))
        return
    console = Console()
    found = {"making the features": in_process("make")}
    for protocol in args.protocol or PROTOCOLS:
        found[protocol] = in_process(protocol)
        console.print(f"{protocol}: {found[protocol]}", highlight=False)
    goals = [Goal(f"{name}: peak of resident memory, GB", figures["peak_gb"], "at most", GOAL_GB) for name, figures in found.items()]
    sizes = {name: getattr(args, name) for name in ("rows", "test_rows", "width", "classes", "max_iterations", "epochs", "num_draws")}
    path = write_results("evaluation_scale", goals, {**sizes, "threads": args.num_threads, "measured": found}, args.out)
    console.print(as_table(found))
    console.print(f"Results: {path}")


def in_process(child: str) -> dict[str, Any]:
    """What the child reports of itself."""
    words = [sys.executable, "-m", "benchmarks.evaluation_scale", *sys.argv[1:], "--child", child]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def paths(args: argparse.Namespace) -> dict[str, tuple[Path, int]]:
    """The file and the number of rows of each split."""
    rows = {"train": args.rows, "test": args.test_rows}
    return {split: (args.folder / f"{split}-{num}x{args.width}-{args.classes}.safetensors", num) for split, num in rows.items()}


def make(args: argparse.Namespace) -> dict[str, Any]:
    """Write the features of both splits, where they are not there."""
    from ray_sassl.evaluation import LabeledFeatures
    from ray_sassl.evaluation.feature_files import FeatureSpill, write_features

    began = measured()
    args.folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    centers = draws.normal(size=(args.classes, _LATENT)).astype(np.float32)
    layer = (draws.normal(size=(_LATENT, args.width)) / 8).astype(np.float32)
    for seed, (path, num) in enumerate(paths(args).values()):
        if path.exists():
            continue
        spill = FeatureSpill()
        for start in range(0, num, _PORTION):
            rng = np.random.default_rng([seed, start])
            labels = np.arange(start, min(start + _PORTION, num)) % args.classes
            latent = centers[labels] + _SPREAD * rng.normal(size=(len(labels), _LATENT)).astype(np.float32)
            spill.add(LabeledFeatures(np.maximum(latent @ layer, 0), labels, np.arange(start, start + len(labels))))
        aside = path.with_suffix(".part")
        with aside.open("wb") as file:
            write_features(file, spill.result(), {})
        aside.rename(path)
    return usage(began)


def evaluate(protocol: str, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the kept features by a protocol."""
    import torch

    from ray_sassl.evaluation import FixedFeatures
    from ray_sassl.evaluation.feature_files import read_features
    from ray_sassl.evaluation.protocols import few_shot, knn, linear

    torch.set_num_threads(args.num_threads)
    configs = {
        "knn": lambda: knn.Config(device="cpu"),
        "linear": lambda: linear.Config(max_iterations=args.max_iterations),
        "sgd": lambda: linear.Config(solver="sgd", epochs=args.epochs, batch_size=1024, device="cpu"),
        "few_shot": lambda: few_shot.Config(num_draws=args.num_draws),
    }
    before_gb = peak_gb()
    began = measured()
    train, test = (read_features(str(path))[0] for path, _ in paths(args).values())
    found = configs[protocol]().build().evaluate(FixedFeatures(train, test))
    scores = {name: round(score.value, 4) for name, score in found.scores.items()}
    return {**usage(began), "before_gb": before_gb, "scores": scores}


def measured() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


def peak_gb() -> float:
    """The most resident memory of this process so far, in 10^9 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def usage(began: tuple[float, float]) -> dict[str, Any]:
    cpu_s, wall_s = (after - before for before, after in zip(began, measured(), strict=True))
    return {"cpu_min": round(cpu_s / 60, 2), "wall_min": round(wall_s / 60, 2), "peak_gb": peak_gb()}


def as_table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("", "CPU-minutes", "minutes", "peak, GB", "before, GB", "scores")
    for name, figures in found.items():
        scores = ", ".join(f"{score} {value:.2%}" for score, value in figures.get("scores", {}).items())
        table.add_row(name, *(str(figures.get(column, "")) for column in ("cpu_min", "wall_min", "peak_gb", "before_gb")), scores)
    return table


if __name__ == "__main__":
    main()
