"""`ray-sassl stylize`: banks of styles, previews, stylized copies of data sets, stylizers of one's own."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from ray_sassl.cli.data import (
    Address,
    Format,
    FormatOption,
    ImageColumn,
    LabelColumn,
    LabelExtension,
    data_config,
    print_bad_rows,
)
from ray_sassl.data import DataConfig
from ray_sassl.files import storage
from ray_sassl.plugins import UsageError

if TYPE_CHECKING:
    from ray_sassl.style.datasets import StyleJobConfig

_STYLE_IMAGE_PX = 256
"""Side of the styles in a preview, which is enough to look at."""

app = typer.Typer(no_args_is_help=True, help="Make style banks, preview styles, stylize whole data sets.")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Changes, such as stylize=swift, stylize.style_px=96, sassl.alpha=[0.5,1] or seed=1."),
]
Actors = Annotated[int | None, typer.Option(min=1, help="Actors in the pool. [default: as many as the cluster has room for]")]
ActorCpus = Annotated[float, typer.Option(min=0.01, help="CPUs of one actor, and its threads.")]
ActorGpus = Annotated[float, typer.Option(min=0, help="GPUs of one actor; a share such as 0.25 is allowed.")]
MaxBadFraction = Annotated[float, typer.Option(help="Stop where more of the images cannot be used.")]


class CopyFormat(StrEnum):
    """The formats of a stylized copy."""

    same = "same"
    parquet = "parquet"
    webdataset = "webdataset"
    folder = "folder"


@app.command("bank", epilog="Example: ray-sassl stylize bank painter-by-numbers/ --out styles.safetensors stylize=magenta")
def bank_command(
    style_data: Annotated[
        str, typer.Argument(metavar="STYLE_DATA", help="Images: Parquet, tar shards or a folder, local or s3://, gs://.")
    ],
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the bank.")] = "styles.safetensors",
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    max_bad_fraction: MaxBadFraction = 0.01,
    actors: Actors = None,
    actor_cpus: ActorCpus = 1.0,
    actor_gpus: ActorGpus = 0.0,
    address: Address = None,
) -> None:
    """Compute the style codes of a data set, for sassl.style_source=bank or gaussian."""
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.styles import make_bank

    console = Console()
    data = data_config(style_data, from_, image_column, "none", max_bad_fraction=max_bad_fraction)
    config = _job(console, overrides, None, only=("stylize",))
    pool = ActorPoolConfig(num_actors=actors, num_cpus=actor_cpus, num_gpus=actor_gpus)
    result = make_bank(data, out, config, pool, address=address)
    print_bad_rows(console, result.bad_rows, "left out")
    console.print(f"{result.num_styles:,} styles of {result.bundle_id}: {out}", soft_wrap=True)
    console.print(f"Use it with: stylize={config.stylize.name} sassl.style_source=bank sassl.bank={out}", soft_wrap=True, highlight=False)


@app.command("dataset", epilog="Example: ray-sassl stylize dataset imagenet/train imagenet-stylized --copies 2 --bank styles.safetensors")
def dataset_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Images: Parquet, tar shards or a folder, local or s3://, gs://.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="An empty folder or URI, or one where this very job was stopped.")],
    overrides: Overrides = None,
    copies: Annotated[int, typer.Option(min=1, help="Copies with other styles; more than one go to DST/copy-0, DST/copy-1, ...")] = 1,
    bank: Annotated[str | None, typer.Option(help="A style bank; without it, styles come from other images of the data set.")] = None,
    format_: Annotated[CopyFormat, typer.Option("--format", help="Of the copy.")] = CopyFormat.same,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a shard, which is written whole or not at all.")] = 1024,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    max_bad_fraction: MaxBadFraction = 0.01,
    actors: Actors = None,
    actor_cpus: ActorCpus = 1.0,
    actor_gpus: ActorGpus = 0.0,
    address: Address = None,
) -> None:
    """Write a stylized copy of a data set, with its labels and keys.

    Every image is stylized at full strength unless sassl.prob, sassl.alpha and sassl.beta say otherwise. Nothing is left out silently: images
    that cannot be used are listed, and where memory does not suffice for a batch it is halved and tried again.
    """
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.styles import stylize_dataset

    console = Console()
    data = data_config(source, from_, image_column, label_column, label_extension=label_extension, max_bad_fraction=max_bad_fraction)
    config = _job(console, overrides, bank)
    pool = ActorPoolConfig(num_actors=actors, num_cpus=actor_cpus, num_gpus=actor_gpus)
    format_name = None if format_ is CopyFormat.same else format_.value
    try:
        result = stylize_dataset(data, target, config, pool, format_=format_name, copies=copies, shard_rows=shard_rows, address=address)
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command goes on where it was: the shards in {target} stay.", soft_wrap=True)
        raise typer.Exit(130) from None
    print_bad_rows(console, result.bad_rows, "left out")
    there = result.num_shards - result.num_written
    console.print(
        f"{result.num_rows:,} images in {result.num_shards:,} shards in {target}: {result.num_written:,} written now"
        + (f", {there:,} were there already." if there else "."),
        soft_wrap=True,
    )


@app.command("preview", epilog="Example: ray-sassl stylize preview photos/ --styles paintings/ --out grid.png stylize=magenta")
def preview_command(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Contents: Parquet, tar shards, a folder or one image.")],
    styles: Annotated[str, typer.Option(help="Styles, likewise.")],
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the picture (PNG).")] = "styles.png",
    rows: Annotated[int, typer.Option(min=1, help="Content images.")] = 4,
    num_styles: Annotated[int, typer.Option(min=1, help="Styles.")] = 3,
    size_px: Annotated[int, typer.Option(min=32, help="Side of the content squares.")] = 224,
    from_: FormatOption = Format.auto,
    styles_from: Annotated[Format, typer.Option(help="The styles' format, likewise.")] = Format.auto,
    image_column: ImageColumn = "image",
) -> None:
    """Draw contents in their own and in other styles, at the paper's strength and at full strength.

    Contents and styles are drawn at random; seed=1 shows others.
    """
    import torch

    from ray_sassl.data.reading import build_index
    from ray_sassl.runs.pictures import styles_picture
    from ray_sassl.style.datasets import sample_squares

    console = Console()
    config = _job(console, overrides, None, only=("stylize", "seed"))
    storage.check_can_write(out)
    stylizer = config.stylize.build(torch.device("cpu"))

    def squares(path: str, format_: Format, count: int, side: int) -> tuple[list[np.ndarray], list[str]]:
        index = build_index(data_config(path, format_, image_column, "none"))
        found, names, bad = sample_squares(index, count, side, config.seed)
        print_bad_rows(console, bad, "left out")
        return found, names

    contents, _ = squares(images, from_, rows, size_px)
    style_images, names = squares(styles, styles_from, num_styles, max(_STYLE_IMAGE_PX, stylizer.style_px))
    picture = styles_picture(stylizer, contents, style_images, torch.device("cpu"), style_names=names)
    storage.write_bytes(out, picture)
    console.print(f"Preview: {out}", soft_wrap=True)


@app.command("distill", epilog="Example: ray-sassl stylize distill photos/ --styles paintings/ --out student.safetensors --steps 15000")
def distill_command(
    contents: Annotated[
        list[str], typer.Argument(metavar="CONTENTS...", help="Photographs: Parquet, tar shards or folders, local or s3://, gs://.")
    ],
    styles: Annotated[list[str], typer.Option(help="Paintings and textures, likewise; may be given several times.")],
    out: Annotated[str, typer.Option(help="Where to write the student's weights.")] = "student.safetensors",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps. [default: those of the shipped weights]")] = None,
    crops: Annotated[int | None, typer.Option(min=8, help="Crops whose codes the teacher computes first. [default: likewise]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pictures of a step, of all workers together. [default: likewise]")] = None,
    size_px: Annotated[
        list[int] | None, typer.Option(help="Side of the contents; several are taken in turns. [default: 32, 64, 32, 96]")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="FILE|swift", help="Go on from this student, or from the shipped one, at a quarter of the rates."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    exclude: Annotated[
        list[str] | None, typer.Option(help="An image not to train on, by the end of its name; may be given several times.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The teacher's converted weights; by default those in the cache.")] = None,
    work_dir: Annotated[str | None, typer.Option(help="For crops and checkpoints, to go on after a stop. [default: OUT.work]")] = None,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    max_bad_fraction: MaxBadFraction = 0.01,
    workers: Annotated[int, typer.Option(min=1, help="Training workers, among which each batch is shared.")] = 1,
    worker_cpus: Annotated[float, typer.Option(min=0.01, help="CPUs of one worker, and its threads.")] = 1.0,
    gpu: Annotated[bool, typer.Option(help="Whether each worker takes a GPU.")] = False,
    address: Address = None,
) -> None:
    """Train a small stylizer to paint as the published one does, for stylize=swift."""
    from ray_sassl.orchestrate.batch.distill import distill
    from ray_sassl.orchestrate.pretraining.train_job import Workers
    from ray_sassl.orchestrate.runtime.session import ray_session
    from ray_sassl.style.distillation import FINE_TUNING, DistillConfig
    from ray_sassl.style.stylizers.magenta import Config as TeacherConfig
    from ray_sassl.style.stylizers.swift import SHIPPED

    given: dict[str, Any] = {"steps": steps, "num_crops": crops, "batch_size": batch_size, "seed": seed}
    if size_px:
        given["sizes_px"] = tuple(size_px)
    if start is not None:
        given |= FINE_TUNING
    config = DistillConfig(**{name: value for name, value in given.items() if value is not None})

    def data(paths: list[str]) -> list[DataConfig]:
        return [data_config(path, from_, image_column, "none", max_bad_fraction=max_bad_fraction) for path in paths]

    console = Console()
    with ray_session(address):
        result = distill(
            data(contents),
            data(styles),
            out,
            config,
            work_dir=work_dir or f"{out}.work",
            teacher=TeacherConfig(weights=weights),
            start=str(SHIPPED) if start == "swift" else start,
            excluded=exclude or (),
            workers=Workers(workers, worker_cpus, gpu),
        )
    print_bad_rows(console, result.bad_rows, "left out")
    console.print(f"{result.steps:,} steps; code space {result.code_space}: {out}", soft_wrap=True)
    console.print(f"Use it with: stylize=swift stylize.weights={out}", soft_wrap=True, highlight=False)


def _job(console: Console, overrides: list[str] | None, bank: str | None, only: tuple[str, ...] = ()) -> StyleJobConfig:
    """`style_job`, said in a line."""
    config, hint = style_job(overrides, bank, only)
    console.print(f"stylizer: {config.stylize.name}{hint}", highlight=False, soft_wrap=True)
    return config


def style_job(overrides: list[str] | None, bank: str | None, only: tuple[str, ...] = ()) -> tuple[StyleJobConfig, str]:
    """The job with the overrides, and a hint where another stylizer would be better.

    Args:
        bank: Of --bank.
        only: What alone has an effect on the verb; everything where empty.
    """
    from ray_sassl.config.overrides import apply_overrides, parse_override
    from ray_sassl.style.datasets import StyleJobConfig
    from ray_sassl.style.stylizers import neural_stylizer

    given = list(overrides or [])
    names = [parse_override(text)[0] for text in given]
    for name in names:
        if only and name.partition(".")[0] not in only:
            raise UsageError(f"{name} has no effect here; what counts are {' and '.join(only)}, as in stylize=swift")
    if bank is not None:
        if "sassl.bank" in names:
            raise UsageError("--bank and sassl.bank both name a style bank; give one of them")
        given += [f"sassl.bank={bank}"]
        if "sassl.style_source" not in names:
            given += ["sassl.style_source=bank"]
    chosen = neural_stylizer()
    hint = ""
    if chosen == "swift" and "stylize" not in names:
        hint = " (our own small one, as the published one is not on this machine: `ray-sassl weights fetch magenta` gets it)"
    return apply_overrides(StyleJobConfig(stylize=chosen), given), hint
