"""What two views cost: images per CPU-second of decoding and two SimCLR views, against lightly's `SimCLRTransform`.

Cases: CIFAR-10 at 32 px; at 224 px ImageNet's sample (256 px, 30 KB), whole photographs (about 110 KB), and 12 megapixels.

Both sides run in the same torch DataLoader with forked workers of one thread each, read the same encoded images from memory, draw from
the same recipe (bilinear, which lightly fixes) and end as normalized float32 batches in the parent: lightly's transform normalizes in the
workers, our workers hand over uint8 and the parent normalizes, and both are counted. Repetitions are interleaved and the median is
taken; CPU-seconds are those of the process and its joined workers. Goals: 3 times lightly's rate at 32 px, 4 times at 224 px.

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
from typing import Annotated, Literal

import cv2
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
from ray_sassl.data import Rows
from ray_sassl.data.decode import open_image
from ray_sassl.nn.normalize import normalize
from ray_sassl.pipeline import crop_rows
from ray_sassl.views import opencv, ops
from ray_sassl.views.crop import Resizing, crop
from ray_sassl.views.draw import draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import ViewsConfig, simclr

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Case:
    """Which images become views of which size, how many at a time, and the goal (times lightly's images per CPU-second)."""

    name: str
    size_px: int
    load: Callable[[Path, int], list[bytes]]
    num_images: int
    stage_images: int
    batch_size: int
    goal: float


@dataclass(frozen=True)
class Cost:
    """Images per second of CPU time and of wall time of one pass."""

    per_cpu_s: float
    per_wall_s: float


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
        encoded = [self._encoded[number] for number in sample_id.tolist()]
        rows = Rows(sample_id, list(encoded), np.zeros_like(sample_id), [""] * len(encoded), [""] * len(encoded), sample_id)
        sized = list(zip(self._config.views, self._config.sizes_px, strict=True))
        views, _ = crop_rows(rows, sized, 0, 0, MAX_PIXELS, list, self._config.chosen_resizing)
        sizes = np.ones((len(sample_id), 2), np.int64)  # the colors do not depend on them
        params = [draw(view, sizes, DrawKey(0, 0, sample_id, number)) for number, view in enumerate(self._config.views)]
        return [torch.from_numpy(opencv.color(crops, drawn, out=crops)) for crops, drawn in zip(views, params, strict=True)]


def main(
    data: Annotated[Path, typer.Option(help="folder with cifar10/ and imagenet-sample/")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="where the JSON goes")] = Path("benchmarks/results/views.json"),
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    num_workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measures, prints a table and writes JSON."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console()
    results = []
    for case in CASES:
        encoded = case.load(data, case.num_images)
        paths = compare(encoded, case, repetitions, num_workers)
        ratio = paths["ray-sassl"].per_cpu_s / paths["lightly"].per_cpu_s
        stages = stage_rates(encoded[: case.stage_images], case.size_px, repetitions)
        results.append(
            {
                "name": case.name,
                "size_px": case.size_px,
                "mean_bytes": sum(map(len, encoded)) // len(encoded),
                "num_images": case.num_images,
                "goal": case.goal,
                "paths": {name: asdict(cost) for name, cost in paths.items()},
                "ratio_cpu": ratio,
                "ratio_wall": paths["ray-sassl"].per_wall_s / paths["lightly"].per_wall_s,
                "stages_images_per_cpu_s": stages,
            }
        )
        console.print(path_table(case, paths, ratio))
        console.print(stage_table(case, stages))
    goals = [
        Goal(f"decode and two views over lightly's, images/CPU-s, {r['name']}", r["ratio_cpu"], "at least", r["goal"]) for r in results
    ]
    details = {"lightly": version("lightly"), "repetitions": repetitions, "num_workers": num_workers, "cases": results}
    console.print(f"written to {write_results('views', goals, details, out)}")


def shards(pattern: str) -> Callable[[Path, int], list[bytes]]:
    """Reads images from as many Parquet shards as it takes."""

    def load(data: Path, num_images: int) -> list[bytes]:
        encoded: list[bytes] = []
        for path in sorted(data.glob(pattern)):
            encoded += pq.read_table(path, columns=["image"])["image"].to_pylist()
            if len(encoded) >= num_images:
                return encoded[:num_images]
        raise typer.BadParameter(f"{data} has {len(encoded)} images in {pattern}, and {num_images} are needed", param_hint="--data")

    return load


def photographs(data: Path, num_images: int) -> list[bytes]:
    """The sample's original files of ordinary size (0.1 to 0.2 megabytes; 110 KB is ImageNet's mean), over and over."""
    files = [path.read_bytes() for path in sorted((data / "imagenet-sample/originals").glob("*.JPEG"))]
    ordinary = [file for file in files if 60_000 <= len(file) <= 250_000]
    return [ordinary[number % len(ordinary)] for number in range(num_images)]


def twelve_megapixels(data: Path, num_images: int) -> list[bytes]:
    """A photograph of 4,000 x 3,000 pixels, put together from the sample's largest one and its mirror images, over and over."""
    image = np.asarray(Image.open(data / "imagenet-sample/originals/n02091032_Italian_greyhound.JPEG", formats=["JPEG"]).convert("RGB"))
    row = np.concatenate([image, image[:, ::-1]], axis=1)
    whole = np.concatenate([row, row[::-1]])[:3000, :4000]
    _, encoded = cv2.imencode(".jpg", whole[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return [encoded.tobytes()] * num_images


CASES = (
    Case("32 px", 32, shards("cifar10/train-*.parquet"), 8192, 512, 256, 3.0),
    Case("224 px", 224, shards("imagenet-sample/parquet/train-*.parquet"), 768, 64, 64, 4.0),
    Case("224 px of photographs", 224, photographs, 384, 36, 48, 4.0),
    Case("224 px of 12 megapixels", 224, twelve_megapixels, 24, 4, 6, 4.0),
)


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
    ours = {"ray-sassl": bilinear, "ray-sassl, bicubic": recipe, "ray-sassl, pillow": bilinear.model_copy(update={"resizing": "pillow"})}
    loaders = {"lightly": DataLoader(LightlyImages(encoded, transform), case.batch_size, num_workers=num_workers)} | {
        name: DataLoader(SasslBatches(encoded, case.batch_size, config), None, num_workers=num_workers, worker_init_fn=pin)
        for name, config in ours.items()
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
    images = [open_image(data, MAX_PIXELS).pixels()[0] for data in encoded]
    sizes = np.array([image.shape[1::-1] for image in images])
    params = draw(view, sizes, DrawKey(0, 0, ids))
    crops = crop(images, params, size_px, "bilinear")
    floats = torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)

    def pillow(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")

    def crops_by(interpolation: Literal["bilinear", "bicubic"], resizing: Resizing) -> Callable[[], object]:
        return lambda: crop(images, params, size_px, interpolation, resizing)

    stages: dict[str, Callable[[], object]] = {
        "decode": lambda: [open_image(data, MAX_PIXELS).pixels() for data in encoded],
        "decode, pillow": lambda: [pillow(data) for data in encoded],
        "draw": lambda: draw(view, sizes, DrawKey(0, 0, ids)),
        **{f"crop, {how}": crops_by(how, "fast") for how in ("bilinear", "bicubic")},
        **{f"crop, {how}, pillow": crops_by(how, "pillow") for how in ("bilinear", "bicubic")},
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
    cv2.setNumThreads(1)


def path_table(case: Case, paths: dict[str, Cost], ratio: float) -> Table:
    verdict = "met" if ratio >= case.goal else "not met"
    table = Table(
        "path",
        "images/CPU-s",
        "images/s",
        title=f"decode + two views, {case.name}: {ratio:.2f}x lightly, goal {case.goal:g}x {verdict}",
    )
    for name, cost in paths.items():
        table.add_row(name, f"{cost.per_cpu_s:,.0f}", f"{cost.per_wall_s:,.0f}")
    return table


def stage_table(case: Case, stages: dict[str, float]) -> Table:
    table = Table("stage, one view", "images/CPU-s", "us/image", title=f"stages, {case.name}")
    for name, rate in stages.items():
        table.add_row(name, f"{rate:,.0f}", f"{1e6 / rate:,.1f}")
    return table


if __name__ == "__main__":
    typer.run(main)
