"""`ray-sassl export` and `embed`: an encoder in the form of other libraries, and its features of whole data sets."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

import ray_sassl
from ray_sassl.cli.data import (
    IMAGES,
    Address,
    Backbone,
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
from ray_sassl.cli.stylize import ActorCpus, ActorGpus, Actors, MaxBadFraction
from ray_sassl.process.console import open_console

app = typer.Typer()


class ExportFormat(StrEnum):
    """The formats that are written."""

    torchvision = "torchvision"
    timm = "timm"
    hf = "hf"
    onnx = "onnx"
    safetensors = "safetensors"


class Head(StrEnum):
    """The heads that can be added to the encoder."""

    none = "none"
    linear = "linear"


Run = Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory (its newest checkpoint) or a checkpoint.")]
SizePx = Annotated[int | None, typer.Option(min=8, help="Side of the images. [default: as in the run's evaluation, else its training]")]


@app.command(epilog="Example: ray-sassl export runs/first --format timm --with-head linear --out encoder/")
def export(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the config, such as evaluate.train.path=... for labeled images."),
    ] = None,
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="The library whose tensor names to use, ONNX, or a folder for Hugging Face.")
    ] = ExportFormat.safetensors,
    out: Annotated[str, typer.Option(help="A folder or URI for the file, its card and the config.")] = "encoder",
    with_head: Annotated[Head, typer.Option(help="`linear` fits a classifier on evaluate.train and adds it.")] = Head.none,
    strict: Strict = False,
    size_px: SizePx = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, for the card, such as cc-by-4.0.")] = None,
) -> None:
    """Write an encoder for use in other libraries.

    The file is checked first: a fresh model of the library must load it with strict=True and compute the same features, as must
    onnxruntime.
    """
    console = open_console()
    with console.status("exporting", spinner="line"):
        how = {"with_head": with_head is Head.linear, "overrides": overrides, "strict": strict, "size_px": size_px, "license": license}
        result = ray_sassl.export(run, out, format=format_.value, **how)
    facts = result.encoder.facts
    console.print(f"{facts.backbone.name} at step {facts.step:,}, {facts.num_features:,} features of {facts.size_px} px images")
    if result.head is not None:
        test = f", {result.head.test_top1:.2%} of the test images" if result.head.test_top1 is not None else ""
        console.print(f"linear head: {result.head.train_top1:.2%} of its train images right{test}")
    console.print(f"Model: {result.model}", soft_wrap=True)
    console.print(f"Card: {result.card}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl embed runs/first 's3://bucket/train-*.tar' --out features.parquet --actors 8 --actor-gpus 0.5")
def embed(
    run: Annotated[
        str, typer.Argument(metavar="ENCODER", help="A run, a checkpoint, what `ray-sassl export` wrote, a file of weights, or timm:NAME.")
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help=IMAGES)],
    out: Annotated[str, typer.Option(help="A file NAME.parquet, or a folder for several files.")] = "features.parquet",
    part_rows: Annotated[int, typer.Option(min=1, help="Rows per part, which is made completely or not at all.")] = 4096,
    backbone: Backbone = None,
    size_px: SizePx = None,
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
    """Write the features of a whole data set, on Ray.

    Each row has a sample_id, key, label (if the data set has labels) and features. The same command continues a job that was stopped.
    Images that cannot be decoded are left out and listed.
    """
    console = open_console()
    options = {"label_extension": label_extension, "max_bad_fraction": max_bad_fraction, "strict": strict}
    config = data_config(data, from_, image_column, label_column, **options)
    with resumable(console, out):
        result = ray_sassl.embed(
            run,
            config,
            out,
            part_rows=part_rows,
            backbone=backbone,
            size_px=size_px,
            actors=actors,
            actor_cpus=actor_cpus,
            actor_gpus=actor_gpus,
            address=address,
        )
    print_bad_rows(console, result.bad_rows, "left out")
    if result.bad_rows_path is not None:
        console.print(f"Bad rows: {result.bad_rows_path}", soft_wrap=True)
    there = result.num_parts - result.num_made
    console.print(
        f"{result.num_rows:,} images with {result.num_features:,} features each in {result.out}: {result.num_made:,} parts made now"
        + (f", {there:,} were there already" if there else "")
        + (f", {result.num_made_rows / result.seconds:,.0f} images/s" if result.num_made else ""),
        soft_wrap=True,
    )
