"""How fast stylizers are: style codes, stylizing and the whole SASSL block, against a plain port of the networks and their convolutions.

    python -m benchmarks.stylize [--rounds 3] [--device cpu] [--size-px 224] [--batch-size 64] [--out FILE] [--resume]

One thread; random images. *Block* is everything that SASSL does to uint8 crops at the paper's p = 0.8: of a batch of 64, 51 are stylized,
and the codes of these and of the images whose style they take are computed. *Plain* is a direct port: eager PyTorch in NCHW, float32, one
image at a time. *Floor* is only the convolutions of the networks, in channels_last through oneDNN, called one after the other on existing
inputs, in the shapes in which the networks call them; the closed-form stylizer `color_statistics` has none. The forms take turns; values
are medians. Goals, at the largest batch: a block takes at most 1.15 times its floor, and at 224 px it is at least 1.5 times as fast as the
plain port.

With `--device cuda`: bfloat16, batches of 256 images of 224 px, images per second, and the share of the card's limit, which is estimated
from the times of a large matrix product and a large copy.

The published weights must be on this machine (`ray-sassl weights fetch magenta`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring import RESULTS, Goal, write_results
from ray_sassl.nn.chunks import Chunks
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.style.augment import StyleAugmentation, blend, draw_styles
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.networks.fused import convolution
from ray_sassl.style.networks.style_network import StyleTransformer
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.style.stylizers.magenta import CODE_SIZE, WEIGHTS, build_networks
from ray_sassl.style.stylizers.magenta import Config as Magenta
from ray_sassl.style.stylizers.network_pair import CPU_EMBED_PIXELS, images_at_once, resized
from ray_sassl.style.stylizers.swift import Config as Swift
from ray_sassl.style.stylizers.swift import build_networks as build_swift
from ray_sassl.style.stylizers.swift import read_student
from ray_sassl.style.weights import load_weights
from ray_sassl.views.keyed import DrawKey

SIZES_PX = (32, 96, 128, 224)
BATCHES = (1, 4, 16, 64)
CARD_BATCH, CARD_PX = 256, 224
TRAINER_RATES = (100, 1000, 10_000)
"""Images that a trainer takes in a second, for the table of stylizers that keep up with it."""
SPARE = 1.1
PLAIN_IMAGES = 2
CPU = torch.device("cpu")
PAPER = SasslConfig()
NAMES = ("color_statistics", "swift", "magenta")
Networks = tuple[nn.Module, StyleTransformer]
Results = dict[str, dict[str, dict[str, dict[str, float]]]]
"""By stylizer, side and batch."""


@dataclass(frozen=True)
class Conv:
    """One call of a convolution: (C, H, W) of its input, and its arguments."""

    shape: tuple[int, int, int]
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    def flops(self) -> float:
        """Of one image."""
        return 2.0 * self.weight[0].numel() * self._outputs()

    def values(self) -> float:
        """Of one image: read and written at the least."""
        return float(np.prod(self.shape)) + self._outputs()

    def _outputs(self) -> float:
        sides = [
            (self.shape[1 + axis] + 2 * self.padding[axis] - self.weight.shape[2 + axis]) // self.stride[axis] + 1 for axis in range(2)
        ]
        return float(len(self.weight) * sides[0] * sides[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size-px", type=int, choices=SIZES_PX, action="append", help="only this one; may be repeated")
    parser.add_argument("--batch-size", type=int, action="append", help="only this one; may be repeated")
    parser.add_argument("--resume", action="store_true", help="keep what OUT holds, and measure what is missing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    console = Console()
    if args.device == "cuda":
        rows = {name: measure_card(name, torch.device("cuda"), CARD_BATCH, CARD_PX, args.rounds) for name in ("swift", "magenta")}
        console.print(rows)
        details = {"device": torch.cuda.get_device_name(), "batch_size": CARD_BATCH, "size_px": CARD_PX, "results": rows}
        console.print(f"written to {write_results('stylize_cuda', [], details, args.out)}")
        return
    torch.set_num_threads(1)
    sizes, batches = args.size_px or SIZES_PX, args.batch_size or BATCHES
    out = args.out or RESULTS / "stylize.json"
    results = json.loads(out.read_text())["results"] if args.resume and out.exists() else {}
    for name in NAMES:
        for px, batch in itertools.product(sizes, batches):
            cells = results.setdefault(name, {}).setdefault(str(px), {})
            if str(batch) not in cells:
                cells[str(batch)] = measure(name, px, batch, args.rounds)
                details = {"threads": 1, "rounds": args.rounds, "results": results}
                write_results("stylize", goals_of(results), details, out)
        console.print(as_table(name, results[name]))
    console.print(needed_table(results))
    console.print(f"written to {out}")


def goals_of(results: Results) -> list[Goal]:
    """Of each size's largest batch."""
    goals = []
    for name in NAMES[1:]:
        for px, cells in results.get(name, {}).items():
            batch = max(cells, key=int)
            what = f"{name}, {px} px, batch {batch}: block over"
            goals.append(Goal(f"{what} its floor, time", cells[batch]["block_over_floor"], "at most", 1.15))
            if px == "224":
                goals.append(Goal(f"{what} the plain port, images/CPU-s", cells[batch]["block_over_plain"], "at least", 1.5))
    return goals


def measure(name: str, size_px: int, batch: int, rounds: int) -> dict[str, float]:
    """Images per CPU-second and per second of each part, and how the block stands to its floor and to the plain port."""
    stylizer = build(name)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size_px, size_px, 3), np.uint8)
    key, embedded, stylized = draws(batch)
    images = to_float(pixels, CPU)
    codes = stylizer.embed(images)
    augmentation = StyleAugmentation(stylizer, PAPER, CPU)
    forms: dict[str, tuple[int, Callable[[], object]]] = {
        "embed": (batch, lambda: stylizer.embed(images)),
        "render": (batch, lambda: stylizer.render(images, codes)),
        "block": (batch, lambda: augmentation.stylize(pixels, key)),
    }
    if name != "color_statistics":
        networks = networks_of(name)
        to_embed, to_render = recorded(networks, stylizer.style_px, size_px)
        forms |= {
            "floor_embed": (batch, floor(to_embed, batch, images_at_once(images, stylizer.style_px**2, CPU_EMBED_PIXELS))),
            "floor_render": (batch, floor(to_render, batch, images_at_once(images, size_px**2))),
            "plain_embed": (min(batch, PLAIN_IMAGES), plain_embed(networks, pixels[:PLAIN_IMAGES], stylizer.style_px)),
            "plain_render": (min(batch, PLAIN_IMAGES), plain_render(networks, pixels[:PLAIN_IMAGES], codes[:PLAIN_IMAGES])),
        }
    cpu: dict[str, list[float]] = {form: [] for form in forms}
    wall: dict[str, list[float]] = {form: [] for form in forms}
    with torch.inference_mode():
        for number in range(rounds * max(1, 8 // batch) + 1):
            for form, (count, call) in forms.items():
                began, cpu_began = time.perf_counter(), time.process_time()
                call()
                if number:  # the first one warms up
                    cpu[form].append((time.process_time() - cpu_began) / count)
                    wall[form].append((time.perf_counter() - began) / count)
    seconds = {form: statistics.median(values) for form, values in cpu.items()}
    rates = {f"{form}_per_cpu_s": 1 / value for form, value in seconds.items()}
    rates |= {f"{form}_per_s": 1 / statistics.median(wall[form]) for form in ("embed", "render", "block")}
    if name != "color_statistics":
        for against in ("floor", "plain"):
            whole = (embedded * seconds[f"{against}_embed"] + stylized * seconds[f"{against}_render"]) / batch
            rates[f"{against}_block_per_cpu_s"] = 1 / whole
        rates["block_over_floor"] = rates["floor_block_per_cpu_s"] / rates["block_per_cpu_s"]
        rates["block_over_plain"] = rates["block_per_cpu_s"] / rates["plain_block_per_cpu_s"]
    return rates


def measure_card(name: str, device: torch.device, batch: int, size_px: int, rounds: int) -> dict[str, float]:
    """Images per second of the block in bfloat16, and its share of what the card's arithmetic and memory allow."""
    stylizer = build(name, device, "bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size_px, size_px, 3), np.uint8)
    key, embedded, stylized = draws(batch)
    to_embed, to_render = recorded(networks_of(name), stylizer.style_px, size_px)
    work = [(conv, count) for convs, count in ((to_embed, embedded), (to_render, stylized)) for conv in convs]
    flops_per_s, bytes_per_s = limits(device)
    arithmetic_s = sum(conv.flops() * count for conv, count in work) / flops_per_s
    memory_s = sum(2 * conv.values() * count for conv, count in work) / bytes_per_s
    images = to_float(pixels, device)
    codes = stylizer.embed(images)
    augmentation = StyleAugmentation(stylizer, PAPER, device, chunks=Chunks(batch))
    block_s = seconds_on(device, rounds, lambda: augmentation.stylize(pixels, key))
    # The networks without the way of the pixels to the card and back.
    networks_s = seconds_on(
        device, rounds, lambda: (stylizer.embed(images[:embedded]), stylizer.render(images[:stylized], codes[:stylized]))
    )
    return {
        "block_per_s": batch / block_s,
        "networks_per_s": batch / networks_s,
        "share_of_limit": max(arithmetic_s, memory_s) / networks_s,
        "arithmetic_limit_per_s": batch / arithmetic_s,
        "memory_limit_per_s": batch / memory_s,
        "flops_per_s": flops_per_s,
        "bytes_per_s": bytes_per_s,
    }


def limits(device: torch.device, side: int = 8192) -> tuple[float, float]:
    """What the device reaches: floating-point operations per second of a large bfloat16 product, and bytes per second of a large copy."""
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product_s = seconds_on(device, 5, lambda: matrix @ matrix)
    other = torch.empty_like(matrix)
    copy_s = seconds_on(device, 5, lambda: other.copy_(matrix))
    return 2.0 * side**3 / product_s, 2.0 * matrix.nbytes / copy_s


def seconds_on(device: torch.device, rounds: int, call: Callable[[], object]) -> float:
    """The median time of the call, the first one left out."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def build(name: str, device: torch.device = CPU, precision: str = "float32") -> Stylizer:
    if name == "color_statistics":
        return ColorStatistics().build(device)
    config = {"swift": Swift, "magenta": Magenta}[name]
    return config.model_validate({"precision": precision}).build(device)


def networks_of(name: str) -> Networks:
    """Predictor and transformer as they are defined, in NCHW."""
    predictor, transformer = build_networks(load_weights(WEIGHTS)) if name == "magenta" else build_swift(read_student()[0])
    return predictor.eval().requires_grad_(False), transformer.eval().requires_grad_(False)


def draws(batch: int) -> tuple[DrawKey, int, int]:
    """The key of samples and an epoch in which just p of them are stylized, and how many are embedded and stylized."""
    for epoch in range(10_000):
        key = DrawKey(0, epoch, np.arange(batch))
        params = draw_styles(PAPER, key)
        if params.apply.sum() == max(1, round(PAPER.prob * batch)):
            assert params.partner is not None
            return key, len(np.union1d(np.flatnonzero(params.apply), params.partner[params.apply])), int(params.apply.sum())
    raise AssertionError(batch)


def recorded(networks: Networks, style_px: int, size_px: int) -> tuple[list[Conv], list[Conv]]:
    """The convolutions of the predictor and of the transformer, as they are called for one image."""
    predictor, transformer = networks
    return _calls(lambda: predictor(torch.rand(1, 3, style_px, style_px))), _calls(
        lambda: transformer(torch.rand(1, 3, size_px, size_px), torch.zeros(1, CODE_SIZE))
    )


def _calls(call: Callable[[], object]) -> list[Conv]:
    convs: list[Conv] = []
    original = nn.functional.conv2d

    def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
        pair = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding)]
        convs.append(Conv(tuple(x.shape[1:]), weight, bias, pair[0], pair[1], groups))
        return original(x, weight, bias, stride, padding, dilation, groups)

    with mock.patch("torch.nn.functional.conv2d", conv2d), plain(), torch.inference_mode():
        call()
    return convs


def plain() -> mock._patch:  # pyright: ignore[reportPrivateUsage]
    """A context in which the networks' operations are PyTorch's ordinary ones, one after the other."""
    return mock.patch("ray_sassl.style.networks.fused.can_fuse", return_value=False)


def floor(convs: list[Conv], batch: int, at_once: int) -> Callable[[], None]:
    """A call of the convolutions for a batch, in portions as the stylizer makes them."""
    portions = [min(at_once, batch - first) for first in range(0, batch, at_once)]
    inputs = [torch.rand(portions[0], *conv.shape).contiguous(memory_format=torch.channels_last) for conv in convs]
    weights = [conv.weight.contiguous(memory_format=torch.channels_last) for conv in convs]

    def call() -> None:
        for portion in portions:
            for conv, x, weight in zip(convs, inputs, weights, strict=True):
                convolution(x[:portion], weight, conv.bias, conv.stride, conv.padding, conv.groups)

    return call


def plain_embed(networks: Networks, pixels: np.ndarray, style_px: int) -> Callable[[], None]:
    """Codes one by one, from images as they come."""

    def call() -> None:
        with plain():
            for image in pixels:
                networks[0](resized(to_float(image[None], CPU).contiguous(), style_px))

    return call


def plain_render(networks: Networks, pixels: np.ndarray, codes: Tensor) -> Callable[[], None]:
    """Stylizing one by one, from images as they come to images as they go."""

    class Port(Stylizer):
        def embed(self, images: Tensor) -> Tensor:
            raise NotImplementedError

        def render(self, images: Tensor, codes: Tensor) -> Tensor:
            return networks[1](images, codes)

    def call() -> None:
        share = torch.full((1,), 0.2)
        with plain():
            for image, code in zip(pixels, codes.split(1), strict=True):
                to_uint8(blend(Port(), to_float(image[None], CPU).contiguous(), code, code, share, share))

    return call


def as_table(name: str, cells: dict[str, dict[str, dict[str, float]]]) -> Table:
    columns = ("px", "batch", "embed", "render", "block", "wall", "plain", "floor", "/ floor", "/ plain")
    table = Table(*columns, title=f"{name}: images/CPU-s on one thread; wall, plain, floor: of the block")
    keys = ("embed_per_cpu_s", "render_per_cpu_s", "block_per_cpu_s", "block_per_s", "plain_block_per_cpu_s", "floor_block_per_cpu_s")
    for px, batches in cells.items():
        for batch, row in batches.items():
            ratios = (f"{row[key]:.2f}" if key in row else "" for key in ("block_over_floor", "block_over_plain"))
            table.add_row(px, batch, *(f"{row[key]:,.0f}" if key in row else "" for key in keys), *ratios)
    return table


def needed_table(results: Results) -> Table:
    """Actors of one CPU that stylize as fast as a trainer trains, and a tenth more."""
    table = Table("stylizer", "px", *(f"{rate:,} images/s" for rate in TRAINER_RATES), title="Stylizers of one CPU that a trainer needs")
    for name, cells in results.items():
        for px, batches in cells.items():
            rate = batches[max(batches, key=int)]["block_per_cpu_s"]
            table.add_row(name, px, *(f"{math.ceil(SPARE * wanted / rate):,}" for wanted in TRAINER_RATES))
    return table


if __name__ == "__main__":
    main()
