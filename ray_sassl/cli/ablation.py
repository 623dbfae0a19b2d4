"""`ray-sassl ablation`: a table of arms, trained and evaluated with several seeds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

import ray_sassl
from ray_sassl.cli.data import Address, Strict
from ray_sassl.cli.search import RunByDefault, live
from ray_sassl.process.console import open_console
from ray_sassl.process.ending import exit_code

_HELP = """Compare the arms of a table: with controls, several seeds and paired intervals.

\b
  ray-sassl ablation NAME [PATH=VALUE]... [OPTIONS]    run a table, or continue it (all options: ray-sassl ablation run --help)
  ray-sassl ablation list                              list the tables
"""

app = typer.Typer(cls=RunByDefault, no_args_is_help=True, help=_HELP)


class Size(StrEnum):
    """What the arms are trained on, and where."""

    cpu = "cpu"
    gpu = "gpu"
    imagenet100 = "imagenet100"
    imagenet = "imagenet"


@app.command("run", epilog="Example: ray-sassl ablation style_controls train.epochs=3 --seeds 5 --study-dir ablations/controls")
def run_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A table's name, or a .py file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the experiments of all arms, such as train.epochs=3.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm; more can be added later.")] = 5,
    size: Annotated[Size, typer.Option(help="CIFAR-10 on two cores (cpu) or one GPU (gpu), ImageNet-100, or ImageNet.")] = Size.cpu,
    experiment: Annotated[
        str | None, typer.Option(help="Another base experiment than the size's: a name, a YAML file or a run directory.")
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option(metavar="PROTOCOLS", help="What encoders are evaluated by, as for `compare`. [default: the table's]")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Runs at once. [default: as many as the cluster has room for]")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed run is restarted from its checkpoint.")] = 1,
    study_dir: Annotated[str | None, typer.Option(help="A path or s3://, gs:// URI. [default: ablations/NAME]")] = None,
    strict: Strict = False,
    address: Address = None,
) -> None:
    """Run a table, or continue it.

    Each arm is trained with each seed and evaluated on the test images. The same command continues after Ctrl-C, tries failed runs again,
    and adds seeds.
    """
    from ray_sassl.cli.protocol_words import parse_protocols, with_all_named, words_of
    from ray_sassl.study.ablation_table import as_markdown

    console = open_console()
    words = words_of(on)
    protocols, changes = parse_protocols(with_all_named(words)) if words else ([], [])
    with live(console) as watch:
        result = ray_sassl.ablation(
            name,
            study_dir,
            seeds=seeds,
            size=size.value,
            experiment=experiment,
            overrides=[*(overrides or []), *changes],
            protocols=protocols,
            max_concurrent=max_concurrent,
            retries=retries,
            strict=strict,
            address=address,
            watch=watch,
            announce=lambda run_dir: console.print(f"Evaluating {run_dir}", soft_wrap=True),
        )
    console.print(as_markdown(result.table), soft_wrap=True)
    for path in result.paths:
        console.print(f"Written: {path}", soft_wrap=True)
    if result.is_interrupted:
        console.print(Text.assemble(("Interrupted:", "yellow"), " the same command continues."))
        raise typer.Exit(exit_code(result.stopped_by))
    if result.table.missing:
        raise typer.Exit(1)


@app.command("list", epilog="Example: ray-sassl ablation list")
def list_command() -> None:
    """List the tables."""
    table = Table("table", "base experiments", "what is compared", title="Ablations", title_justify="left")
    for ablation in ray_sassl.list_ablations().values():
        table.add_row(ablation.name, ", ".join(ablation.experiments.values()), ablation.about)
    open_console().print(table)
