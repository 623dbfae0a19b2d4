"""`ray-sassl stylize`: style banks, previews, stylized copies of data sets, distilled stylizers."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import ray_sassl
from ray_sassl.cli.data import (
    IMAGES,
    Address,
    Format,
    FormatOption,
    ImageColumn,
    LabelColumn,
    LabelExtension,
    Strict,
    data_config,
    print_bad_rows,
    resumable,
)
from ray_sassl.process.console import open_console

if TYPE_CHECKING:
    from ray_sassl.data import DataConfig
    from ray_sassl.style.datasets import StyleJobConfig

app = typer.Typer(no_args_is_help=True, help="Make style banks, preview styles, stylize whole data sets.")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Changes, such as stylize=swift, stylize.style_px=96, sassl.alpha=[0.5,1] or seed=1."),
]
Actors = Annotated[int | None, typer.Option(min=1, help="Actors in the pool. [default: as many as the cluster has room for]")]
ActorCpus = Annotated[float, typer.Option(min=0.01, help="CPUs and threads per actor.")]
ActorGpus = Annotated[float, typer.Option(min=0, help="GPUs per actor; a share such as 0.25 is allowed.")]
MaxBadFraction = Annotated[float, typer.Option(help="Stop if a larger share of the images cannot be used.")]


class CopyFormat(StrEnum):
    """The formats of a stylized copy."""

    same = "same"
    parquet = "parquet"
    webdataset = "webdataset"
    folder = "folder"


@app.command("bank", epilog="Example: ray-sassl stylize bank painter-by-numbers/ --out styles.safetensors stylize=magenta")
def bank_command(
    style_data: Annotated[str, typer.Argument(metavar="STYLE_DATA", help=IMAGES)],
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the bank.")] = "styles.safetensors",
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    max_bad_fraction: MaxBadFraction = 0.01,
    strict: Strict = False,
    actors: Actors = None,
    actor_cpus: ActorCpus = 1.0,
    actor_gpus: ActorGpus = 0.0,
    address: Address = None,
) -> None:
    """Compute the style codes of a data set, for sassl.style_source=bank or gaussian."""
    console = open_console()
    data = data_config(style_data, from_, image_column, "none", max_bad_fraction=max_bad_fraction, strict=strict)
    config = _job(console, overrides, None, only=("stylize",))
    result = ray_sassl.build_style_bank(
        data, out, overrides=config, actors=actors, actor_cpus=actor_cpus, actor_gpus=actor_gpus, address=address
    )
    print_bad_rows(console, result.bad_rows, "left out")
    console.print(f"{result.num_styles:,} styles of {result.bundle_id}: {out}", soft_wrap=True)
    console.print(f"Use it with: stylize={config.stylize.name} sassl.style_source=bank {shlex.quote(f'sassl.bank={out}')}", soft_wrap=True)


@app.command("dataset", epilog="Example: ray-sassl stylize dataset imagenet/train imagenet-stylized --copies 2 --bank styles.safetensors")
def dataset_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help=IMAGES)],
    target: Annotated[str, typer.Argument(metavar="DST", help="A folder or URI that is empty or has a part of the same job.")],
    overrides: Overrides = None,
    copies: Annotated[int, typer.Option(min=1, help="Copies with different styles; several go to DST/copy-0, DST/copy-1, ...")] = 1,
    bank: Annotated[str | None, typer.Option(help="A style bank; without it, styles come from other images of the data set.")] = None,
    format_: Annotated[CopyFormat, typer.Option("--format", help="Format of the copy.")] = CopyFormat.same,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows per shard, which is written completely or not at all.")] = 1024,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    label_extension: LabelExtension = "cls",
    max_bad_fraction: MaxBadFraction = 0.01,
    strict: Strict = False,
    actors: Actors = None,
    actor_cpus: ActorCpus = 1.0,
    actor_gpus: ActorGpus = 0.0,
    address: Address = None,
) -> None:
    """Write a stylized copy of a data set, with its labels and keys.

    Every image is stylized at full strength unless sassl.prob, sassl.alpha and sassl.beta are given. Images that cannot be used are listed.
    A batch that does not fit in memory is halved and tried again.
    """
    console = open_console()
    options = {"label_extension": label_extension, "max_bad_fraction": max_bad_fraction, "strict": strict}
    data = data_config(source, from_, image_column, label_column, **options)
    config = _job(console, overrides, bank)
    with resumable(console, target):
        result = ray_sassl.stylize_dataset(
            data,
            target,
            overrides=config,
            copies=copies,
            format=None if format_ is CopyFormat.same else format_.value,
            shard_rows=shard_rows,
            actors=actors,
            actor_cpus=actor_cpus,
            actor_gpus=actor_gpus,
            address=address,
        )
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
    styles: Annotated[str, typer.Option(help="Styles: Parquet, tar shards, a folder or one image.")],
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the picture (PNG).")] = "styles.png",
    rows: Annotated[int, typer.Option(min=1, help="Number of content images.")] = 4,
    num_styles: Annotated[int, typer.Option(min=1, help="Number of styles.")] = 3,
    size_px: Annotated[int, typer.Option(min=32, help="Side of the content squares.")] = 224,
    from_: FormatOption = Format.auto,
    styles_from: Annotated[Format, typer.Option(help="The format of the styles.")] = Format.auto,
    image_column: ImageColumn = "image",
    strict: Strict = False,
) -> None:
    """Draw contents in their own and in other styles, at the paper's strength and at full strength.

    Contents and styles are chosen at random; seed=1 shows others.
    """
    console = open_console()
    config = _job(console, overrides, None, only=("stylize", "seed"))
    sources = ((images, from_), (styles, styles_from))
    contents, others = (data_config(path, format_, image_column, "none", strict=strict) for path, format_ in sources)
    result = ray_sassl.preview_styles(contents, others, out, overrides=config, num_images=rows, num_styles=num_styles, size_px=size_px)
    print_bad_rows(console, result.bad_rows, "left out")
    console.print(f"Preview: {out}", soft_wrap=True)


@app.command("distill", epilog="Example: ray-sassl stylize distill photos/ --styles paintings/ --out student.safetensors --steps 15000")
def distill_command(
    contents: Annotated[
        list[str], typer.Argument(metavar="CONTENTS...", help="Photographs: Parquet, tar shards or folders, local or s3://, gs://.")
    ],
    styles: Annotated[list[str], typer.Option(help="Paintings and textures in the same forms; may be given several times.")],
    out: Annotated[str, typer.Option(help="Where to write the student's weights.")] = "student.safetensors",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps. [default: as for the shipped weights]")] = None,
    crops: Annotated[
        int | None, typer.Option(min=8, help="Crops whose codes the teacher computes first. [default: as for the shipped weights]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images per step, over all workers. [default: as for the shipped weights]")
    ] = None,
    size_px: Annotated[
        list[int] | None, typer.Option(help="Side of the contents; several are used in turn. [default: 32, 64, 32, 96]")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="FILE|swift", help="Continue from this student, or from the shipped one, at a quarter of the learning rates."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    exclude: Annotated[
        list[str] | None, typer.Option(help="An image not to train on, by the end of its name; may be given several times.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The teacher's converted weights; by default those in the cache.")] = None,
    work_dir: Annotated[
        str | None, typer.Option(help="Folder for crops and checkpoints, to continue after a stop. [default: OUT.work]")
    ] = None,
    from_: FormatOption = Format.auto,
    image_column: ImageColumn = "image",
    max_bad_fraction: MaxBadFraction = 0.01,
    strict: Strict = False,
    workers: Annotated[int, typer.Option(min=1, help="Training workers that share each batch.")] = 1,
    worker_cpus: Annotated[float, typer.Option(min=0.01, help="CPUs and threads per worker.")] = 1.0,
    gpu: Annotated[bool, typer.Option(help="Whether each worker takes a GPU.")] = False,
    address: Address = None,
) -> None:
    """Train a small stylizer to stylize as the published one does, for stylize=swift."""
    given: dict[str, Any] = {"steps": steps, "num_crops": crops, "batch_size": batch_size, "seed": seed}
    if size_px:
        given["sizes_px"] = tuple(size_px)

    def data(paths: list[str]) -> list[DataConfig]:
        return [data_config(path, from_, image_column, "none", max_bad_fraction=max_bad_fraction, strict=strict) for path in paths]

    console = open_console()
    with resumable(console, work_dir or f"{out}.work"):
        result = ray_sassl.distill_stylizer(
            data(contents),
            data(styles),
            out,
            settings={name: value for name, value in given.items() if value is not None},
            start=start,
            exclude=exclude or (),
            weights=weights,
            work_dir=work_dir,
            workers=workers,
            worker_cpus=worker_cpus,
            use_gpu=gpu,
            address=address,
        )
    print_bad_rows(console, result.bad_rows, "left out")
    console.print(f"{result.steps:,} steps; code space {result.code_space}: {out}", soft_wrap=True)
    console.print(f"Use it with: stylize=swift {shlex.quote(f'stylize.weights={out}')}", soft_wrap=True)


def _job(console: Console, overrides: list[str] | None, bank: str | None, only: tuple[str, ...] = ()) -> StyleJobConfig:
    """Print in one line how images are stylized, and return the config."""
    from ray_sassl.api.style import style_job

    config, hint = style_job(overrides, bank, only)
    console.print(f"stylizer: {config.stylize.name}{hint}", soft_wrap=True)
    return config
