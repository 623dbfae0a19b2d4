"""What this machine's GPU gives: training against its bare network, fed by the loader, and with a stylizer beside it.

    python -m benchmarks.gpu [--network resnet50] [--network timm/vit_small_patch16_224] [--batch-size 256] [--size-px 224] [--steps 20]
        [--rounds 3] [--stylizer swift] [--images 512] [--out FILE]

It needs no Ray, and runs on a CPU too, with small sizes. Training is SimCLR in bfloat16 with two views. *Bare* is the network's passes over
both views with the mean of its features as the loss, and SGD, on a batch that is on the device. *Step* is the loop's update on the same
batch: normalization, the method with its loss, SGD. *Loop* is the whole loop on batches in the host's memory, which are pinned and
uploaded. *Loader* is the loop fed from JPEG files that all CPUs decode. *Stylized* is the loop with each batch's left view stylized on the
same device before. Stylizers embed and render a batch; their share of the card's limit is their operations a second as a share of those
of a large product of matrices in the same precision. All take turns; figures are medians over the rounds, ratios those of each round.
Goal: step/bare at least 0.95.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Goal, write_results
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.methods import simclr
from ray_sassl.nn.normalize import Normalization
from ray_sassl.pipeline import ViewSource, local_batches
from ray_sassl.style.augment import StyleAugmentation
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.networks.style_network import MobileNetPredictor, StyleTransformer
from ray_sassl.style.stylizers import Stylizer, magenta, swift
from ray_sassl.style.stylizers.network_pair import NetworkPair
from ray_sassl.train.config import OptimConfig, Progress, TrainConfig
from ray_sassl.train.context import LocalContext
from ray_sassl.train.loop import Job, _update, train
from ray_sassl.train.optim import build_optimizer
from ray_sassl.train.prefetch import to_device
from ray_sassl.types import Arrays
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import simclr as simclr_views

NETWORKS = ("resnet50", "timm/vit_small_patch16_224")
GOAL = 0.95
OPTIM = OptimConfig(name="sgd", base_lr=0.03)
_PRODUCT = {"cuda": 8192, "cpu": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", action="append", help="of torchvision, or timm/NAME; may be repeated")
    parser.add_argument("--stylizer", choices=["swift", "magenta"], action="append", help="only this one; may be repeated")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="JPEG files that the loader reads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machine = Machine(torch.device(args.device), args.batch_size, args.size_px, args.steps, args.rounds)
    networks, stylizers = args.network or NETWORKS, args.stylizer or ("swift", "magenta")
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder), args.images, args.size_px)
        training = {name: machine.training(name, source, folder) for name in networks}
    styles = {name: machine.stylizing(name) for name in stylizers}
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    show(name, training, styles)
    goals = [Goal(f"{network}: step over bare", found["step_over_bare"], "at least", GOAL) for network, found in training.items()]
    details = {"device": name, "cpus": num_cpus(), "arguments": {key: value for key, value in vars(args).items() if key != "out"}}
    print(f"written to {write_results('gpu', goals, details | {'training': training, 'stylizing': styles}, args.out)}")


class Machine:
    """Measures on one device, in images a second; a step's images count once, though it has two views of each."""

    def __init__(self, device: torch.device, batch_size: int, size_px: int, steps: int, rounds: int) -> None:
        self.device, self.batch_size, self.size_px, self.steps, self.rounds = device, batch_size, size_px, steps, rounds
        draws = np.random.default_rng(0)
        shape = (batch_size, size_px, size_px, 3)
        self.arrays: Arrays = {
            "view_0": draws.integers(0, 256, shape, np.uint8),
            "view_1": draws.integers(0, 256, shape, np.uint8),
            "sample_id": np.arange(batch_size),
            "epoch": np.zeros(batch_size, np.int64),
        }
        self.config = TrainConfig(epochs=1, global_batch=batch_size, precision="bfloat16", log_every=steps + 1)

    def training(self, network: str, source: ViewSource, folder: str) -> dict[str, float]:
        """Images a second of each form of training, and their ratios."""
        torch.backends.cudnn.benchmark = True
        stylize = StyleAugmentation(swift.Config().build(self.device), SasslConfig(prob=1.0), self.device, None).stylize
        forms: dict[str, Callable[[], float]] = {
            "bare": self._repeated(self._bare(network)),
            "step": self._repeated(self._step(network)),
            "loop": lambda: self._loop(network, self._same(), folder),
            "loader": lambda: self._loop(network, self._loaded(source), folder),
            "stylized": lambda: self._loop(network, self._stylized(stylize), folder),
        }
        found = self._in_turns(forms)
        figures = {f"{form}_images_per_s": statistics.median(values) for form, values in found.items()}
        pairs = (("step", "bare"), ("loop", "bare"), ("loader", "loop"), ("stylized", "loop"))
        return figures | {f"{a}_over_{b}": statistics.median(x / y for x, y in zip(found[a], found[b], strict=True)) for a, b in pairs}

    def stylizing(self, name: str) -> dict[str, float]:
        """Images a second that a stylizer embeds and renders, and its share of the card's limit, in both precisions."""
        images = torch.rand(self.batch_size, 3, self.size_px, self.size_px, device=self.device)
        figures = {}
        for dtype in (torch.float32, torch.bfloat16):
            stylizer = build_stylizer(name, self.device, dtype)
            form = str(dtype).removeprefix("torch.")
            rates = self._in_turns({"stylizer": self._repeated(lambda s=stylizer: s.render(images, s.embed(images)))})["stylizer"]
            figures[f"{form}_images_per_s"] = statistics.median(rates)
            figures[f"{form}_share_of_limit"] = statistics.median(rates) * operations(name, self.size_px) / self._limit(dtype)
        return figures

    def _in_turns(self, forms: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Each form's images a second, by round."""
        found: dict[str, list[float]] = {form: [] for form in forms}
        for number in range(self.rounds):
            order = list(forms)
            for form in order[number % len(order) :] + order[: number % len(order)]:
                found[form].append(forms[form]())
        return found

    def _repeated(self, step: Callable[[], object]) -> Callable[[], float]:
        """Images a second of a step that is done again and again, after one that warms up."""

        def rate() -> float:
            step()
            self._wait()
            began = time.perf_counter()
            for _ in range(self.steps):
                step()
            self._wait()
            return self.steps * self.batch_size / (time.perf_counter() - began)

        return rate

    def _bare(self, network: str) -> Callable[[], object]:
        backbone = self._on_device(new_backbone(network)[0])
        optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        pixels = Normalization(self.config.pixel_mean, self.config.pixel_std, self.device)
        views = torch.cat([pixels(view) for view in to_device(self.arrays, self.device).views])

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = backbone(views).float().mean()
            loss.backward()
            optimizer.step()

        return step

    def _step(self, network: str) -> Callable[[], object]:
        job = self._job(network, iter(()), "")
        method = self._on_device(job.method)
        optimizer, batch = build_optimizer(method, OPTIM), to_device(self.arrays, self.device)
        pixels, progress = (
            Normalization(self.config.pixel_mean, self.config.pixel_std, self.device),
            Progress(job.num_rows, self.batch_size, 1),
        )
        return lambda: _update(method, method, optimizer, [batch], job, pixels, 0, progress)

    def _loop(self, network: str, batches: Iterator[Arrays], folder: str) -> float:
        """Images a second of the loop after its first step."""
        context = LocalContext(device=self.device)
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            train(self._job(network, batches, run_dir, context))
        return next(report["images_per_s"] for report in context.reports if report["step"] == self.steps + 1)

    def _job(self, network: str, batches: Iterator[Arrays], run_dir: str, context: LocalContext | None = None) -> Job:
        torch.manual_seed(0)
        method = simclr.Config().build(*new_backbone(network))
        num_rows = (self.steps + 1) * self.batch_size
        return Job(method, batches, self.config, OPTIM, num_rows, 0, run_dir, "", context or LocalContext(device=self.device))

    def _same(self) -> Iterator[Arrays]:
        for _ in range(self.steps + 1):
            yield self.arrays

    def _loaded(self, source: ViewSource) -> Iterator[Arrays]:
        num_images = source.index.num_rows
        batches = local_batches(
            source,
            epochs=(self.steps + 1) * self.batch_size / num_images + 2,
            batch_size=self.batch_size,
            on_bad=_refuse,
            num_threads=num_cpus(),
        )
        for number, batch in zip(range(self.steps + 1), batches, strict=False):
            rows = number * self.batch_size + np.arange(self.batch_size)
            yield batch | {"sample_id": rows, "epoch": np.zeros(self.batch_size, np.int64)}  # the run counts no epochs of the files

    def _stylized(self, stylize: Callable[[np.ndarray, DrawKey], np.ndarray]) -> Iterator[Arrays]:
        for step in range(self.steps + 1):
            yield self.arrays | {"view_0": stylize(self.arrays["view_0"], DrawKey(0, step, self.arrays["sample_id"], 0))}

    def _limit(self, dtype: torch.dtype) -> float:
        """Operations a second of a product of two large matrices."""
        side = _PRODUCT.get(self.device.type, 512)
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        rate = self._repeated(lambda: a @ b)() / self.batch_size
        return rate * 2 * side**3

    def _on_device(self, module: Any) -> Any:
        return module.to(self.device).to(memory_format=torch.channels_last).train()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def new_backbone(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name=name))


def build_stylizer(name: str, device: torch.device, dtype: torch.dtype) -> Stylizer:
    """The stylizer; `magenta` with random weights, which are as fast as the published ones."""
    predictor, transformer, code_size, style_px = networks_of(name)
    return NetworkPair(name, code_size, predictor, transformer, style_px, device, dtype)


def networks_of(name: str) -> tuple[nn.Module, StyleTransformer, int, int]:
    """Predictor, transformer, width of a code, and side of the predictor's images."""
    if name == "swift":
        predictor, transformer = swift.build_networks(swift.read_student()[0])
        return predictor.eval(), transformer.eval(), predictor.code.out_features, swift.STYLE_PX
    return MobileNetPredictor(magenta.CODE_SIZE).eval(), StyleTransformer(magenta.CODE_SIZE).eval(), magenta.CODE_SIZE, 256


def operations(name: str, size_px: int) -> int:
    """Operations (a multiplication and an addition are two) that embedding and rendering one image take."""
    predictor, transformer, code_size, style_px = networks_of(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        predictor(torch.rand(1, 3, style_px, style_px))
        transformer(torch.rand(1, 3, size_px, size_px), torch.rand(1, code_size))
    return counter.get_total_flops()


def write_images(folder: Path, num_images: int, size_px: int) -> ViewSource:
    """Photograph-like JPEG files of about twice the views' side in a Parquet shard, and two views of them."""
    draws, encoded = np.random.default_rng(0), []
    side = 2 * size_px + 64
    for _ in range(num_images):
        coarse = Image.fromarray(draws.integers(0, 256, (24, 24, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noise = draws.normal(0, 12, (side, side, 1))
        out = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    table = pa.table({"image": encoded, "label": pa.array(np.zeros(num_images), pa.int32())})
    pq.write_table(table, folder / "images.parquet", row_group_size=64)
    data = DataConfig(path=str(folder / "images.parquet"), block_rows=64)
    build_index(data).save(str(folder / "index.arrow"))
    return ViewSource(str(folder / "index.arrow"), data, simclr_views(size_px), seed=0)


def num_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show(device: str, training: dict[str, dict[str, float]], stylizing: dict[str, dict[str, float]]) -> None:
    table = Table("network", "form", "images/s", "ratio", title=f"Training on {device}, bfloat16, two views")
    ratios = {"step": "step_over_bare", "loop": "loop_over_bare", "loader": "loader_over_loop", "stylized": "stylized_over_loop"}
    for network, found in training.items():
        for form in ("bare", "step", "loop", "loader", "stylized"):
            ratio = ratios.get(form)
            table.add_row(network, form, f"{found[f'{form}_images_per_s']:,.1f}", f"{found[ratio]:.3f} {ratio}" if ratio else "")
            network = ""
    styles = Table("stylizer", "precision", "images/s", "share of the limit", title="Stylizers")
    for name, found in stylizing.items():
        for form in ("float32", "bfloat16"):
            styles.add_row(name, form, f"{found[f'{form}_images_per_s']:,.1f}", f"{found[f'{form}_share_of_limit']:.1%}")
    Console().print(table, styles)


def _refuse(rows: list[Any]) -> None:
    raise ValueError(f"files that were just written cannot be decoded: {rows}")


if __name__ == "__main__":
    main()
