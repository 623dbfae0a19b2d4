"""How long training stands still for its checkpoints, which are written beside it.

    python -m benchmarks.checkpoint [--steps 30] [--every 10] [--batch-size 64] [--num-threads 1] [--out FILE]

SimCLR with a ResNet-18 in its CIFAR form takes steps on random images, with a checkpoint every so many. *Stands still* is the time within
the
loop for a checkpoint: the copy of weights, momentum and what was seen, and the wait for a checkpoint before it that is not written yet.
*In the loop* is what writing the same checkpoint would take if training waited for it. Goal: at most 1 % of the step time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.methods import simclr
from ray_sassl.train.checkpoint import latest_checkpoint, write_checkpoint
from ray_sassl.train.config import OptimConfig, TrainConfig
from ray_sassl.train.context import LocalContext
from ray_sassl.train.loop import Job, train
from ray_sassl.types import Arrays

NUM_ROWS = 1_281_167
"""Of ImageNet, so that the record of what was seen has its usual size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        stalls, step_s = run(args.steps, args.every, args.batch_size, torch.device(args.device), folder)
        in_the_loop_s, num_bytes = seconds_to_write(folder)
    stall_s = sum(stalls) / (args.steps // args.every)
    share = sum(stalls) / (step_s * args.steps)
    table = Table("", "s", title=f"A checkpoint of {num_bytes / 1e6:,.0f} MB every {args.every} steps of {step_s:.2f} s")
    table.add_row("training stands still for", f"{stall_s:.3f}")
    table.add_row("in the loop it would stand still for", f"{in_the_loop_s:.3f}")
    Console().print(table)
    print(f"{share:.2%} of the step time; in the loop it would be {in_the_loop_s / (args.every * step_s):.2%}")
    details = {"step_s": step_s, "stall_s": stall_s, "in_the_loop_s": in_the_loop_s, "bytes": num_bytes, "every": args.every}
    goal = Goal("share of the step time for which training stands still", share, "at most", 0.01)
    print(f"written to {write_results('checkpoint', [goal], details, args.out)}")


def run(steps: int, every: int, batch_size: int, device: torch.device, run_dir: str) -> tuple[list[float], float]:
    """The seconds for which training stood still at each step, and the mean seconds of a step without that."""
    backbone, num_features = build_backbone(BackboneConfig(name="resnet18", stem="cifar"))
    method = simclr.Config(projector_hidden_size=512).build(backbone, num_features)
    settings = TrainConfig(
        epochs=(steps + 2) * batch_size / NUM_ROWS, global_batch=batch_size, log_every=1, checkpoint_every=every, precision="float32"
    )
    context = LocalContext(device=device)
    train(Job(method, batches(batch_size), settings, OptimConfig(), NUM_ROWS, 0, run_dir, "", context))
    measured = context.reports[2:]
    seconds = [batch_size / report["images_per_s"] for report in measured]
    stalls = [report["save_stall"] * s for report, s in zip(measured, seconds, strict=True)]
    return stalls, (sum(seconds) - sum(stalls)) / len(measured)


def batches(batch_size: int) -> Iterator[Arrays]:
    """Random images without end."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (batch_size, 32, 32, 3), dtype=np.uint8)
    first = 0
    while True:
        ids = np.arange(first, first + batch_size) % NUM_ROWS
        yield {"view_0": pixels, "view_1": pixels[::-1].copy(), "sample_id": ids, "epoch": np.zeros(batch_size, np.int64)}
        first += batch_size


def seconds_to_write(run_dir: str) -> tuple[float, int]:
    """How long it takes to write the run's newest checkpoint once more, and its bytes."""
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    weights = {f"backbone.{name}": tensor for name, tensor in checkpoint.backbone.items()} | checkpoint.state["method"]
    state = {name: value for name, value in checkpoint.state.items() if name != "method"}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = write_checkpoint(folder, 1, weights, state, checkpoint.seen, checkpoint.config_yaml, keep=1)
        return time.perf_counter() - began, sum(file.stat().st_size for file in Path(path).iterdir())


if __name__ == "__main__":
    main()
