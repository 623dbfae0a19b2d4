"""`ray-sassl weights`: get the published networks, check them, print where they are."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

import ray_sassl
from ray_sassl.process.console import open_console, write

app = typer.Typer(no_args_is_help=True, help="Get the published networks of stylizers.")

Name = Annotated[str, typer.Argument(help="The weights' name, such as magenta.")]


@app.command("list", epilog="Example: ray-sassl weights list")
def list_command() -> None:
    """List the weights, and which of them are on this machine."""
    table = Table("name", "here", "download", "license", "what it is", title="Weights", title_justify="left")
    for name, status in ray_sassl.list_weights().items():
        weights = status.weights
        here = "yes" if status.is_here else f"{len(weights.files) - len(status.missing)} of {len(weights.files)} files"
        what = f"{weights.title}, by {weights.authors} ({weights.paper}); code space {weights.code_space}"
        table.add_row(name, here, decimal(weights.num_bytes), weights.license, what)
    open_console().print(table)


@app.command(epilog="Example: ray-sassl weights fetch magenta")
def fetch(name: Name) -> None:
    """Download, check and convert weights. A download that was interrupted is continued."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=open_console()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=total)
            bar.update(tasks[file], completed=done)

        found = ray_sassl.fetch_weights(name, show)
    open_console().print(f"{name}: {found}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl weights add style_predict_quantized_256.tflite style_transfer_f16_384.tflite")
def add(files: Annotated[list[str], typer.Argument(help="Published files, recognized by their content.")]) -> None:
    """Add published files from disk, for machines without a network."""
    console = open_console()
    added = ray_sassl.add_weights(files)
    for path, status in added:
        console.print(f"{path}: of {status.weights.name}", soft_wrap=True)
    for name, status in {status.weights.name: status for _, status in added}.items():
        if status.missing:
            console.print(f"{name} still needs {', '.join(status.missing)}", style="yellow", soft_wrap=True)
        else:
            console.print(f"{name}: {status.path}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl weights verify")
def verify(name: Annotated[str | None, typer.Argument(help="[default: all on this machine]")] = None) -> None:
    """Check the weights on this machine, tensor by tensor."""
    console = open_console()
    chosen = ray_sassl.verify_weights(name)
    for checked in chosen:
        console.print(f"{checked}: complete and as published")
    if not chosen:
        console.print("No weights are on this machine; `ray-sassl weights list` lists them.")


@app.command("path", epilog="Example: aws s3 cp $(ray-sassl weights path magenta) s3://bucket/magenta.safetensors")
def path_command(name: Name) -> None:
    """Print where the converted weights are, to copy them to a shared path for stylize.weights."""
    write(f"{ray_sassl.weights_path(name)}\n")
