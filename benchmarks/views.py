"""What two views cost: images per CPU-second of decoding and two SimCLR views, against lightly's `SimCLRTransform`.

Both sides run in the same torch DataLoader with forked workers of one thread each, read the same encoded images from memory, draw from
the same recipe (bilinear, which lightly fixes) and end as normalized float32 batches in the parent: lightly's transform normalizes in the
workers, our workers hand over uint8 and the parent normalizes, and both are counted. Repetitions are interleaved and the median is
taken; CPU-seconds are those of the process and its joined workers. Goals: 3 times lightly's rate at 32 px, twice at 224 px.

    python -m benchmarks.views [--data ../shared/data] [--out benchmarks/results/views.json]
"""

from __future__ import annotations

import io
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from lightly.transforms.simclr_transform import SimCLRTransform  # pyright: ignore[reportMissingImports]
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import Goal, write_results
from ray_sassl.data.decode import decode
from ray_sassl.keyed import DrawKey
from ray_sassl.nn.normalize import normalize
from ray_sassl.views import opencv, ops
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import draw
from ray_sassl.views.recipes import ViewsConfig, simclr

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MAX_PIXELS = 1 << 26
STAGE_IMAGES = {32: 512, 224: 64}


@dataclass(frozen=True)
class Case:
    """One size of view: its images, how many at a time, and the goal (times lightly's images per CPU-second)."""

    size_px: int
    shards: str
    num_images: int
    batch_size: int
    goal: float


@dataclass(frozen=True)
class Cost:
    """Images per second of CPU time and of wall time of one pass."""

    per_cpu_s: float
    per_wall_s: float


CASES = (
    Case(32, "cifar10/train-*.parquet", 8192, 256, 3.0),
    Case(224, "imagenet-sample/parquet/train-*.parquet", 768, 64, 2.0),
)


class LightlyImages(Dataset):
    """One image a item, decoded with Pillow and given to lightly's transform."""

    def __init__(self, encoded: Sequence[bytes], transform: Callable) -> None:
        self._encoded, self._transform = encoded, transform

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self._transform(Image.open(io.BytesIO(self._encoded[index]), formats=["JPEG"]).convert("RGB"))


class SasslBatches(Dataset):
    """One batch a item: two uint8 views, made as the pipeline's workers make them."""

    def __init__(self, encoded: Sequence[bytes], batch_size: int, config: ViewsConfig) -> None:
        self._encoded, self._batch_size, self._config = encoded, batch_size, config

    def __len__(self) -> int:
        return math.ceil(len(self._encoded) / self._batch_size)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        sample_id = np.arange(index * self._batch_size, min((index + 1) * self._batch_size, len(self._encoded)))
        images = [decode(self._encoded[i], MAX_PIXELS) for i in sample_id.tolist()]
        sizes = np.array([image.size for image in images])
        views = []
        for number, (view, size_px) in enumerate(zip(self._config.views, self._config.sizes_px, strict=True)):
            params = draw(view, sizes, DrawKey(0, 0, sample_id, number))
            crops = crop(images, params, size_px, view.interpolation)
            views.append(torch.from_numpy(opencv.color(crops, params, out=crops)))
        return views


def main(
    data: Annotated[Path, typer.Option(help="folder with cifar10/ and imagenet-sample/")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="where the JSON goes")] = Path("benchmarks/results/views.json"),
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    num_workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measures, prints a table and writes JSON."""
    torch.set_num_threads(1)
    opencv.pin_threads()
    console = Console()
    results = []
    for case in CASES:
        encoded = load(data, case)
        paths = compare(encoded, case, repetitions, num_workers)
        ratio = paths["ray-sassl"].per_cpu_s / paths["lightly"].per_cpu_s
        stages = stage_rates(encoded[: STAGE_IMAGES[case.size_px]], case.size_px, repetitions)
        results.append(
            {
                **asdict(case),
                "paths": {name: asdict(cost) for name, cost in paths.items()},
                "ratio_cpu": ratio,
                "ratio_wall": paths["ray-sassl"].per_wall_s / paths["lightly"].per_wall_s,
                "stages_images_per_cpu_s": stages,
            }
        )
        console.print(path_table(case, paths, ratio))
        console.print(stage_table(case, stages))
    goals = [
        Goal(f"decode and two views over lightly's, images/CPU-s, {r['size_px']} px", r["ratio_cpu"], "at least", r["goal"])
        for r in results
    ]
    details = {"lightly": version("lightly"), "repetitions": repetitions, "num_workers": num_workers, "cases": results}
    console.print(f"written to {write_results('views', goals, details, out)}")


def load(data: Path, case: Case) -> list[bytes]:
    """The encoded images of the case, from as many shards as it takes."""
    encoded: list[bytes] = []
    for path in sorted(data.glob(case.shards)):
        encoded += pq.read_table(path, columns=["image"])["image"].to_pylist()
        if len(encoded) >= case.num_images:
            return encoded[: case.num_images]
    raise typer.BadParameter(f"{data} has {len(encoded)} images in {case.shards}, and {case.num_images} are needed", param_hint="--data")


def compare(encoded: list[bytes], case: Case, repetitions: int, num_workers: int) -> dict[str, Cost]:
    """The median cost of each path, its repetitions interleaved with the others'."""
    recipe = simclr(case.size_px)
    bilinear = with_bilinear(recipe)
    is_small = case.size_px <= 64
    transform = SimCLRTransform(
        input_size=case.size_px,
        cj_strength=0.5 if is_small else 1.0,
        gaussian_blur=0.0 if is_small else 0.5,
        normalize={"mean": MEAN, "std": STD},
    )
    loaders = {
        "lightly": DataLoader(LightlyImages(encoded, transform), case.batch_size, num_workers=num_workers),
        "ray-sassl": DataLoader(SasslBatches(encoded, case.batch_size, bilinear), None, num_workers=num_workers, worker_init_fn=pin),
        "ray-sassl, bicubic": DataLoader(SasslBatches(encoded, case.batch_size, recipe), None, num_workers=num_workers, worker_init_fn=pin),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in loaders}
    for _ in range(repetitions):
        for name, loader in loaders.items():
            costs[name].append(measure(loader, len(encoded)))
    return {
        name: Cost(statistics.median(c.per_cpu_s for c in runs), statistics.median(c.per_wall_s for c in runs))
        for name, runs in costs.items()
    }


def measure(loader: DataLoader, num_images: int) -> Cost:
    """One pass; the loader joins its workers at the end, so that their CPU time is counted."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    seen = 0
    for views in loader:
        seen += len(views[0])
        for view in views:
            if view.dtype == torch.uint8:
                normalize(view, MEAN, STD)
    assert seen == num_images
    return Cost(num_images / (cpu_seconds() - cpu), num_images / (time.perf_counter() - wall))


def cpu_seconds() -> float:
    """User and system time of this process and of its joined children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def stage_rates(encoded: list[bytes], size_px: int, repetitions: int) -> dict[str, float]:
    """Images per CPU-second of each stage by itself, in one process; draw, crop and color are for one view."""
    config = with_bilinear(simclr(size_px))
    view, ids = config.left, np.arange(len(encoded))
    images = [decode(data, MAX_PIXELS) for data in encoded]
    sizes = np.array([image.size for image in images])
    params = draw(view, sizes, DrawKey(0, 0, ids))
    crops = crop(images, params, size_px, "bilinear")
    floats = torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)
    stages: dict[str, Callable[[], object]] = {
        "decode": lambda: [decode(data, MAX_PIXELS) for data in encoded],
        "draw": lambda: draw(view, sizes, DrawKey(0, 0, ids)),
        "crop, bilinear": lambda: crop(images, params, size_px, "bilinear"),
        "crop, bicubic": lambda: crop(images, params, size_px, "bicubic"),
        "color, opencv": lambda: opencv.color(crops, params),
        "color, torch": lambda: ops.color(floats, params),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for stage in stages.values():
        stage()
    for _ in range(repetitions):
        for name, stage in stages.items():
            start = time.process_time()
            stage()
            seconds[name].append(time.process_time() - start)
    return {name: len(encoded) / statistics.median(times) for name, times in seconds.items()}


def with_bilinear(config: ViewsConfig) -> ViewsConfig:
    """The config with lightly's interpolation."""
    return config.model_copy(
        update={side: getattr(config, side).model_copy(update={"interpolation": "bilinear"}) for side in ("left", "right")}
    )


def pin(_worker: int) -> None:
    """One OpenCV thread in a loader's worker; torch pins itself there."""
    opencv.pin_threads()


def path_table(case: Case, paths: dict[str, Cost], ratio: float) -> Table:
    verdict = "met" if ratio >= case.goal else "not met"
    table = Table(
        "path",
        "images/CPU-s",
        "images/s",
        title=f"decode + two views, {case.size_px} px: {ratio:.2f}x lightly, goal {case.goal:g}x {verdict}",
    )
    for name, cost in paths.items():
        table.add_row(name, f"{cost.per_cpu_s:,.0f}", f"{cost.per_wall_s:,.0f}")
    return table


def stage_table(case: Case, stages: dict[str, float]) -> Table:
    table = Table("stage, one view", "images/CPU-s", "us/image", title=f"stages, {case.size_px} px")
    for name, rate in stages.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / rate:,.1f}")
    return table


if __name__ == "__main__":
    typer.run(main)
