"""What a method costs beyond its network: a whole training step against the bare passes, and against lightly's modules.

    python -m benchmarks.train_step [--batch-size 128] [--rounds 3] [--method simclr] [--device cpu] [--out FILE]

All three get the same ResNet-18 in its CIFAR form, the same views and the same channels_last layout. *Step* is the method with its loss,
SGD and momentum update. *Bare* is the forward passes that the method needs (those of momentum networks without gradients) and one backward
pass from the mean of the embeddings. *lightly* is the step of lightly's published examples. They take turns; figures are medians over
the rounds, ratios are medians of each round's ratio. Goals: step/bare at most 1.05, step/lightly at most 1.0.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss  # pyright: ignore[reportMissingImports]
from lightly.models.modules import (  # pyright: ignore[reportMissingImports]
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import (  # pyright: ignore[reportMissingImports]
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    update_momentum,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring import Goal, write_results
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.methods import MethodConfig, byol, moco, simclr

CONFIGS: dict[str, MethodConfig] = {
    "simclr": simclr.Config(temperature=0.5, projector_hidden_size=512),
    "moco": moco.Config(temperature=0.1, queue_size=4096, momentum=0.99, projector_hidden_size=512),
    "byol": byol.Config(projector_hidden_size=1024, predictor_hidden_size=1024),
}
GOALS = {"bare": 1.05, "lightly": 1.0}
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=sorted(CONFIGS), action="append", help="only this one; may be repeated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    device = torch.device(args.device)
    results = {name: measure(name, args.batch_size, args.rounds, device) for name in args.method or CONFIGS}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    details = {"device": device_name, "threads": args.num_threads, "batch_size": args.batch_size, "rounds": args.rounds, "results": results}
    goals = [
        Goal(f"{name}: training step over {form}", figures[f"step_over_{form}"], "at most", bound)
        for name, figures in results.items()
        for form, bound in GOALS.items()
    ]
    Console().print(as_table(results, args.batch_size, device_name))
    print(f"written to {write_results('train_step', goals, details, args.out)}")


def measure(name: str, batch_size: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Median wall and CPU seconds of each form of the step, and the median ratios of their CPU seconds (wall on a GPU)."""
    views = draw_views(batch_size, device)
    steps = {"step": our_step(name, views, device), "bare": bare_step(name, views, device), "lightly": LIGHTLY_STEPS[name](views, device)}
    for step in steps.values():
        step()
    wall: dict[str, list[float]] = {form: [] for form in steps}
    cpu: dict[str, list[float]] = {form: [] for form in steps}
    for number in range(rounds):
        forms = list(steps)
        for form in forms[number % 3 :] + forms[: number % 3]:
            began, cpu_began = time.perf_counter(), time.process_time()
            steps[form]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall[form].append(time.perf_counter() - began)
            cpu[form].append(time.process_time() - cpu_began)
    cost = wall if device.type == "cuda" else cpu
    figures = {f"{form}_wall_s": statistics.median(wall[form]) for form in steps}
    figures |= {f"{form}_cpu_s": statistics.median(cpu[form]) for form in steps}
    figures |= {f"step_over_{form}": ratio(cost["step"], cost[form]) for form in GOALS}
    return figures


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def as_table(results: dict[str, dict[str, float]], batch_size: int, device: str) -> Table:
    table = Table(title=f"A training step: ResNet-18 (CIFAR form), batch {batch_size}, {device}")
    columns = ["method", "step, CPU-s", "bare, CPU-s", "lightly, CPU-s", "step, wall s", "step / bare (<= 1.05)", "step / lightly (<= 1.0)"]
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, figures in results.items():
        seconds = [f"{figures[key]:.3f}" for key in ("step_cpu_s", "bare_cpu_s", "lightly_cpu_s", "step_wall_s")]
        table.add_row(name, *seconds, f"{figures['step_over_bare']:.3f}", f"{figures['step_over_lightly']:.3f}")
    return table


def draw_views(batch_size: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, 3, 32, 32)
    return [torch.randn(shape, generator=generator).to(device, memory_format=torch.channels_last) for _ in range(2)]


def new_backbone() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name="resnet18", stem="cifar"))[0]


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.03, momentum=0.9, weight_decay=5e-4)


def our_step(name: str, views: list[Tensor], device: torch.device) -> Step:
    method = CONFIGS[name].build(new_backbone(), 512)
    on_device(method, device)
    optimizer, generator = sgd(method), torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        method(views, generator).loss.backward()
        optimizer.step()
        method.after_step(0.5)

    return step


def bare_step(name: str, views: list[Tensor], device: torch.device) -> Step:
    method = CONFIGS[name].build(new_backbone(), 512)
    on_device(method, device)

    def simclr_passes() -> Tensor:
        assert isinstance(method, simclr.SimCLR)
        return method.projector(method.backbone(torch.cat(views))).mean()

    def moco_passes() -> Tensor:
        assert isinstance(method, moco.MoCo)
        with torch.no_grad():
            method.key_projector(method.key_backbone(views[1]))
        return method.projector(method.backbone(views[0])).mean()

    def byol_passes() -> Tensor:
        assert isinstance(method, byol.BYOL)
        with torch.no_grad():
            for view in views:
                method.target_projector(method.target_backbone(view))
        return torch.stack([method.predictor(method.projector(method.backbone(view))).mean() for view in views]).sum()

    passes = {"simclr": simclr_passes, "moco": moco_passes, "byol": byol_passes}[name]

    def step() -> None:
        method.zero_grad()
        passes().backward()

    return step


def lightly_simclr(views: list[Tensor], device: torch.device) -> Step:
    network = on_device(nn.Sequential(new_backbone(), SimCLRProjectionHead(512, 512, 128)), device)
    optimizer, criterion = sgd(network), NTXentLoss(temperature=0.5)

    def step() -> None:
        loss = criterion(network(views[0]), network(views[1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_moco(views: list[Tensor], device: torch.device) -> Step:
    network = on_device(nn.Sequential(new_backbone(), MoCoProjectionHead(512, 512, 128)), device)
    momentum_network = copy.deepcopy(network)
    deactivate_requires_grad(momentum_network)
    optimizer, criterion = sgd(network), NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128)).to(device)

    def step() -> None:
        update_momentum(network, momentum_network, m=0.99)
        query = network(views[0])
        with torch.no_grad():
            shuffled, order = batch_shuffle(views[1])
            key = batch_unshuffle(momentum_network(shuffled), order)
        criterion(query, key).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_byol(views: list[Tensor], device: torch.device) -> Step:
    network = on_device(nn.Sequential(new_backbone(), BYOLProjectionHead(512, 1024, 256)), device)
    momentum_network = copy.deepcopy(network)
    deactivate_requires_grad(momentum_network)
    predictor = on_device(BYOLPredictionHead(256, 1024, 256), device)
    optimizer, criterion = sgd(nn.ModuleList([network, predictor])), NegativeCosineSimilarity()

    def step() -> None:
        update_momentum(network, momentum_network, m=0.99)
        p0, p1 = predictor(network(views[0])), predictor(network(views[1]))
        with torch.no_grad():
            z0, z1 = momentum_network(views[0]), momentum_network(views[1])
        loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


LIGHTLY_STEPS: dict[str, Callable[[list[Tensor], torch.device], Step]] = {
    "simclr": lightly_simclr,
    "moco": lightly_moco,
    "byol": lightly_byol,
}


if __name__ == "__main__":
    main()
