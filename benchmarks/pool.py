""" "No change in pretraining throughput" (SASSL, section 4): images per second of training with style augmentation against without, and
with a frozen teacher beside it, whose features the same actors compute.

    python -m benchmarks.pool [--data ../shared/data] [--step-s SECONDS]

The stylizers run on an actor pool with a core of its own; the training step is a sleep of its measured length, as on an accelerator that
the stylizers do not share. The two take turns; figures are medians. Goal: at least 0.97 of the throughput.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import build_method, view_source
from ray_sassl.runs.teacher import keep_teacher, with_teacher

WARM_UP_STEPS, STEPS = 3, 25
TEACHER = "resnet20"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--step-s", type=float, help="length of a training step; measured where not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = apply_overrides(
        load_experiment("moco_cifar10_cpu"), [f"data.path={args.data}/cifar10/train-*.parquet", "train.epochs=1", "stream.num_cpus=0.5"]
    )
    styled = apply_overrides(base, ["stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=1"])
    step_s = args.step_s or step_seconds(base)
    rates: dict[str, list[float]] = {"without": [], "with": [], "with, and a teacher": []}
    with tempfile.TemporaryDirectory() as folder, ray_session("local"):
        teaching = apply_overrides(
            styled, ["method=distill", f"method.teacher={_write_teacher(folder)}", f"method.teacher_backbone={{name: {TEACHER}}}"]
        )
        for _ in range(args.rounds):
            for name, config in zip(rates, (base, styled, teaching), strict=True):
                rates[name].append(images_per_s(config, step_s))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio, taught = (
        statistics.median(mine / theirs for mine, theirs in zip(rates[name], rates["without"], strict=True))
        for name in ("with", "with, and a teacher")
    )
    table = Table(
        "style augmentation",
        "images/s",
        title=f"Training steps of {step_s:.2f} s, batch {base.train.global_batch}: ratios {ratio:.3f} and {taught:.3f}",
    )
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.1f}")
    Console().print(table)
    goals = [
        Goal("images/s with SASSL on the pool over without", ratio, "at least", 0.97),
        Goal("images/s with SASSL and a teacher on the pool over without", taught, "at least", 0.97),
    ]
    print(f"written to {write_results('pool', goals, {'step_s': step_s, 'images_per_s': rates}, args.out)}")


def _write_teacher(folder: str) -> str:
    path = Path(folder) / "teacher.safetensors"
    safetensors.torch.save_file(build_backbone(BackboneConfig(name=TEACHER))[0].state_dict(), path)
    return str(path)


def step_seconds(config: ExperimentConfig) -> float:
    """The median length of the method's training step on this machine."""
    method = build_method(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    views = [torch.randn(config.train.global_batch, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    lengths = []
    for _ in range(5):
        began = time.perf_counter()
        optimizer.zero_grad()
        method(views, torch.Generator().manual_seed(0)).loss.backward()
        optimizer.step()
        method.after_step(0.5)
        lengths.append(time.perf_counter() - began)
    return statistics.median(lengths)


def images_per_s(config: ExperimentConfig, step_s: float) -> float:
    """Images per second of a loop that sleeps for each batch, after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        config, teacher = with_teacher(config, folder, resume=False)
        index = prepare_run_dir(config, folder, resume=False)
        if teacher is not None:
            keep_teacher(config, teacher, folder)
        control = start_control(index.num_rows, 0.0, f"{folder}/quarantine.jsonl")
        stream = make_stream(stream_spec(config, view_source(config, folder)), SeenIds(index.num_rows), control)
        began = 0.0
        for step, _ in enumerate(stream.iter_batches(batch_size=config.train.global_batch, batch_format="numpy", prefetch_batches=2)):
            if step == WARM_UP_STEPS:
                began = time.perf_counter()
            if step == WARM_UP_STEPS + STEPS:
                break
            time.sleep(step_s)
        return STEPS * config.train.global_batch / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
