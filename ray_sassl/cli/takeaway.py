"""`ray-sassl export`: an encoder as other libraries have it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()


class ExportFormat(StrEnum):
    """The formats that are written."""

    torchvision = "torchvision"
    timm = "timm"
    onnx = "onnx"
    safetensors = "safetensors"


class Head(StrEnum):
    """What can stand on top of the encoder."""

    none = "none"
    linear = "linear"


Run = Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory (its newest checkpoint) or a checkpoint.")]
SizePx = Annotated[int | None, typer.Option(min=8, help="Side of the images. [default: as the run was evaluated, else trained]")]


@app.command(epilog="Example: ray-sassl export runs/first --format timm --with-head linear --out encoder/")
def export(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Where labelled images are (evaluate.train.path=...).")
    ] = None,
    format_: Annotated[ExportFormat, typer.Option("--format", help="Whose names the tensors have, or ONNX.")] = ExportFormat.safetensors,
    out: Annotated[str, typer.Option(help="A folder or URI for the file, its card and the config.")] = "encoder",
    with_head: Annotated[Head, typer.Option(help="`linear` fits a classifier on evaluate.train and adds it.")] = Head.none,
    size_px: SizePx = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the card, such as cc-by-4.0.")] = None,
) -> None:
    """Write an encoder for use elsewhere.

    The file is tried first: a fresh model of the library must take it with strict=True and give the same features, as must onnxruntime.
    """
    from ray_sassl.takeaway.export import export_encoder

    console = Console()
    with console.status("exporting"):
        result = export_encoder(
            run, format_.value, out, with_head=with_head is Head.linear, overrides=overrides, size_px=size_px, licence=licence
        )
    facts = result.encoder.facts
    console.print(f"{facts.backbone.name} at step {facts.step:,}, {facts.num_features:,} features of {facts.size_px} px images")
    if result.head is not None:
        test = f", {result.head.test_top1:.2%} of the test images" if result.head.test_top1 is not None else ""
        console.print(f"linear head: {result.head.train_top1:.2%} of its train images right{test}", highlight=False)
    console.print(f"Model: {result.model}", soft_wrap=True)
    console.print(f"Card: {result.card}", soft_wrap=True)
