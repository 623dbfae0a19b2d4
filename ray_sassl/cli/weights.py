"""`ray-sassl weights`: get the published networks, check them, say where they are."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from ray_sassl.plugins import UsageError, did_you_mean

app = typer.Typer(no_args_is_help=True, help="Get the published networks of stylizers.")

Name = Annotated[str, typer.Argument(help="The weights' name, such as magenta.")]


@app.command("list", epilog="Example: ray-sassl weights list")
def list_command() -> None:
    """What there is, and what of it is on this machine."""
    from ray_sassl.style.stylizers import all_published_weights
    from ray_sassl.style.weights import missing_files, weights_path

    table = Table("name", "here", "download", "license", "what it is", title="Weights", title_justify="left")
    for name, weights in all_published_weights().items():
        missing = missing_files(weights)
        here = "yes" if weights_path(weights).exists() else f"{len(weights.files) - len(missing)} of {len(weights.files)} files"
        what = f"{weights.title}, by {weights.authors} ({weights.paper}); code space {weights.code_space}"
        table.add_row(name, here, decimal(weights.num_bytes), weights.license, what)
    Console().print(table)


@app.command(epilog="Example: ray-sassl weights fetch magenta")
def fetch(name: Name) -> None:
    """Download, check and convert weights. A download that was cut off goes on where it was."""
    from ray_sassl.style.weights import fetch_weights

    weights = _named(name)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        tasks = {file.name: bar.add_task(file.name, total=file.num_bytes) for file in weights.files}
        path = fetch_weights(weights, lambda file, done: bar.update(tasks[file], completed=done))
    Console().print(f"{name}: {path}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl weights add style_predict_quantized_256.tflite style_transfer_f16_384.tflite")
def add(files: Annotated[list[str], typer.Argument(help="Published files, recognized by their content.")]) -> None:
    """Take published files from disk, for machines without a network."""
    from ray_sassl.style.stylizers import all_published_weights
    from ray_sassl.style.weights import add_weights, missing_files, weights_path

    console = Console()
    added = add_weights(all_published_weights().values(), files)
    for path, weights in added:
        console.print(f"{path}: of {weights.name}", soft_wrap=True)
    for weights in {weights.name: weights for _, weights in added}.values():
        if missing := missing_files(weights):
            console.print(f"[yellow]{weights.name} still needs {', '.join(missing)}[/]", soft_wrap=True)
        else:
            console.print(f"{weights.name}: {weights_path(weights)}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl weights verify")
def verify(name: Annotated[str | None, typer.Argument(help="[default: all that are here]")] = None) -> None:
    """Check the weights on this machine, tensor by tensor."""
    from ray_sassl.style.stylizers import all_published_weights
    from ray_sassl.style.weights import verify_weights, weights_path

    chosen = [_named(name)] if name else [weights for weights in all_published_weights().values() if weights_path(weights).exists()]
    console = Console()
    for weights in chosen:
        verify_weights(weights)
        console.print(f"{weights.name}: whole and as published")
    if not chosen:
        console.print("No weights are on this machine; `ray-sassl weights list` says what there is.")


@app.command(epilog="Example: aws s3 cp $(ray-sassl weights path magenta) s3://bucket/magenta.safetensors")
def path(name: Name) -> None:
    """Print where the converted weights are, to copy them to a shared path for stylize.weights."""
    from ray_sassl.style.weights import load_weights, weights_path

    weights = _named(name)
    load_weights(weights)
    print(weights_path(weights))


def _named(name: str):
    from ray_sassl.style.stylizers import all_published_weights

    known = all_published_weights()
    if name not in known:
        raise UsageError(f"there are no weights {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return known[name]
