"""How close the small stylizer `swift` is to the published one that it was distilled from, on images it has never seen, and how fast it is.

Every held-out content is stylized in every held-out style, at alpha = 1. The styles are those of `HELD_OUT_STYLES`; the contents are the
first 60 rows of the ImageNet sample's last shard (96 and 224 px) and of CIFAR-10's test shard (32 px); none of these files was trained on.
For scale, the published stylizer with codes computed at 96 px instead of 256 px is measured in the same way. Speed is that of the whole
SASSL block, with every image embedded and four fifths of them rendered, on one thread. Goals: a mean absolute difference of at most 0.06,
the style's mean color to within 0.08, SSIM to the content at most 0.05 below the teacher's; 4 times the published pair's speed at 32 px,
1.5 times at 96 px.

    python -m benchmarks.swift_fidelity [--data ../shared/data] [--out benchmarks/results/swift_fidelity.json] \
        [--picture docs/images/swift.jpg]

The published weights must be on this machine (`ray-sassl weights fetch magenta`).
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measuring import Goal, write_results
from ray_sassl.data import DataConfig
from ray_sassl.data.decode import decode, decode_rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.runs.pictures import image_grid
from ray_sassl.style.augment import blend
from ray_sassl.style.datasets import square
from ray_sassl.style.distillation.fidelity import Fidelity, fidelity
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.style.stylizers.magenta import Config as Magenta
from ray_sassl.style.stylizers.network_pair import resized
from ray_sassl.style.stylizers.swift import Config as Swift

HELD_OUT_STYLES = (
    "gordicaleksa-okeffe_red_canna",
    "gordicaleksa-vg_houses",
    "gordicaleksa-vg_la_cafe",
    "gordicaleksa-vg_wheat_field",
    "hi-space-monet_san_giorgio_maggiore_at_dusk",
    "leonavici-mona_lisa",
    "luiscib3r-style10",
    "magenta-la_forma",
    "naoto0804-antimonocromatismo",
    "naoto0804-impronte_d_artista",
    "zhanghang1989-candy",
    "zhanghang1989-shipwreck",
)
HELD_OUT_CONTENTS = {
    32: "cifar10/test-00000.parquet",
    96: "imagenet-sample/parquet/train-00003.parquet",
    224: "imagenet-sample/parquet/train-00003.parquet",
}
PICTURE_CONTENTS = "transfer/clothing/test-00000.parquet"
PICTURE_STYLES = (
    "gordicaleksa-vg_wheat_field",
    "hi-space-monet_san_giorgio_maggiore_at_dusk",
    "gordicaleksa-vg_la_cafe",
    "zhanghang1989-shipwreck",
    "gordicaleksa-vg_houses",
)
"""Held-out paintings by artists who have been dead for over ninety years; the contents are dedicated to the public domain (CC0)."""
STYLE_PX = 256
PICTURE_CELL_PX = 144
NUM_CONTENTS = 60
PAPER_STRENGTH = 0.3
BATCH_SIZE = 32
RENDERED_SHARE = 0.8
CPU = torch.device("cpu")
MAX_PIXELS = 1 << 26


class TeachersCodes(Stylizer):
    """Stylizes with the student and the codes of the teacher; the two share a code space."""

    def __init__(self, student: Stylizer, teacher: Stylizer) -> None:
        self.bundle_id, self.code_size, self.min_px = student.bundle_id, student.code_size, student.min_px
        self._student, self._teacher = student, teacher

    def embed(self, images: Tensor) -> Tensor:
        return self._teacher.embed(images)

    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        return self._student.render(images, codes)


def main(
    data: Annotated[Path, typer.Option(help="folder with styles/, cifar10/ and imagenet-sample/")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="where the JSON goes")] = Path("benchmarks/results/swift_fidelity.json"),
    picture: Annotated[Path | None, typer.Option(help="where a grid beside the teacher's goes")] = None,
    weights: Annotated[str | None, typer.Option(help="a student's file; by default the shipped one")] = None,
    contents: Annotated[int, typer.Option(min=1, help="content images")] = NUM_CONTENTS,
) -> None:
    """Measures, prints tables and writes JSON."""
    torch.set_num_threads(1)
    console = Console()
    teacher, small_teacher, student = Magenta().build(CPU), Magenta(style_px=96).build(CPU), Swift(weights=weights).build(CPU)
    styles = load_styles(data)
    paths = {"swift": student, "swift, the teacher's codes": TeachersCodes(student, teacher), "magenta, codes at 96 px": small_teacher}
    found: dict[str, dict[str, Fidelity]] = {}
    for size_px, shard in HELD_OUT_CONTENTS.items():
        images = load_contents(data / shard, size_px, contents)
        found[str(size_px)] = {name: fidelity(stylizer, teacher, images, styles) for name, stylizer in paths.items()}
        console.print(fidelity_table(size_px, found[str(size_px)]))
    pairs = {"swift": student, "magenta": teacher, "magenta, codes at 96 px": small_teacher}
    rates = {str(size_px): block_rates(pairs, size_px) for size_px in (32, 96)}
    console.print(speed_table(rates))
    details = {
        "held_out_styles": HELD_OUT_STYLES,
        "held_out_contents": {str(size_px): f"{shard}, rows 0 to {contents - 1}" for size_px, shard in HELD_OUT_CONTENTS.items()},
        "fidelity": {size_px: {name: asdict(result) for name, result in rows.items()} for size_px, rows in found.items()},
        "block_images_per_cpu_s": rates,
    }
    console.print(f"written to {write_results('swift_fidelity', goals_of(found, rates), details, out)}")
    if picture is not None:
        content = load_contents(data / PICTURE_CONTENTS, 224, 7 * len(PICTURE_STYLES))[::7]
        image = Image.open(io.BytesIO(grid(teacher, student, content, load_styles(data, PICTURE_STYLES))), formats=["PNG"])
        image.save(picture, quality=88)


def goals_of(found: dict[str, dict[str, Fidelity]], rates: dict[str, dict[str, float]]) -> list[Goal]:
    """Each of the fidelity's goals at every size, and the speed's."""
    goals: list[Goal] = []
    for size_px, rows in found.items():
        result = rows["swift"]
        goals += [
            Goal(f"mean absolute difference to the teacher's pictures, {size_px} px", result.difference, "at most", 0.06),
            Goal(f"distance to the style's mean color, {size_px} px", result.color, "at most", 0.08),
            Goal(f"SSIM to the content below the teacher's, {size_px} px", result.teacher_ssim - result.ssim, "at most", 0.05),
        ]
    for size_px, factor in (("32", 4.0), ("96", 1.5)):
        ratio = rates[size_px]["swift"] / rates[size_px]["magenta"]
        goals.append(Goal(f"SASSL block over the published pair's, images/CPU-s, {size_px} px", ratio, "at least", factor))
    return goals


def load_styles(data: Path, names: Sequence[str] = HELD_OUT_STYLES) -> Tensor:
    """(N, 3, 256, 256) float in [0, 1]: the middles of the styles."""
    images = [decode((data / "styles" / f"{name}.jpg").read_bytes(), MAX_PIXELS) for name in names]
    return to_float(np.stack([square(image, STYLE_PX) for image in images]), CPU)


def load_contents(path: Path, size_px: int, count: int) -> Tensor:
    """(count, 3, size_px, size_px) float in [0, 1]: the middles of the shard's first rows."""
    index = build_index(DataConfig(path=str(path)))
    rows = read_groups(index, range(index.num_groups)).take(np.arange(count))
    images = [image for image in decode_rows(rows, MAX_PIXELS, lambda image: image) if not isinstance(image, BadRow)]
    return to_float(np.stack([square(image, size_px) for image in images]), CPU)


@torch.inference_mode()
def block_rates(stylizers: Mapping[str, Stylizer], size_px: int, repetitions: int = 5) -> dict[str, float]:
    """Images per CPU-second of the whole block, the stylizers' repetitions interleaved."""
    images = torch.rand(BATCH_SIZE, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)
    count = round(RENDERED_SHARE * BATCH_SIZE)
    seconds: dict[str, list[float]] = {name: [] for name in stylizers}
    for repetition in range(repetitions + 1):
        for name, stylizer in stylizers.items():
            start = time.process_time()
            codes = stylizer.embed(images)
            stylizer.render(images[:count], codes[:count])
            if repetition:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    return {name: BATCH_SIZE / statistics.median(times) for name, times in seconds.items()}


@torch.inference_mode()
def grid(teacher: Stylizer, student: Stylizer, contents: Tensor, styles: Tensor) -> bytes:
    """A PNG: each content in a style of its own, by both stylizers, at full strength and at the paper's."""
    titles = ["content", "style", "magenta, 1", "swift, 1", f"magenta, {PAPER_STRENGTH}", f"swift, {PAPER_STRENGTH}"]
    rows = []
    for content, style in zip(contents.split(1), styles.split(1), strict=True):
        row = [content, resized(style, content.shape[2])]
        for strength in (1.0, PAPER_STRENGTH):
            share = torch.tensor([strength])
            row += [blend(one, content, one.embed(content), one.embed(style), share, share) for one in (teacher, student)]
        rows.append([to_uint8(image)[0] for image in row])
    return image_grid(rows, titles, [["" for _ in row] for row in rows], PICTURE_CELL_PX)


def fidelity_table(size_px: int, rows: dict[str, Fidelity]) -> Table:
    headings = ("difference", "color", "teacher's color", "SSIM to content", "teacher's SSIM")
    table = Table("stylizer", *headings, title=f"alpha = 1, {size_px} px")
    for name, result in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in asdict(result).values()))
    return table


def speed_table(rates: dict[str, dict[str, float]]) -> Table:
    table = Table("stylizer", *(f"{size_px} px" for size_px in rates), title="SASSL block, images/CPU-s")
    for name in next(iter(rates.values())):
        table.add_row(name, *(f"{row[name]:,.0f}" for row in rates.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
