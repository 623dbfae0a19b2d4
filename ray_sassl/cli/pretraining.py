"""`ray-sassl demo`, `experiments`, `pretrain` and `views`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import ray_sassl
from ray_sassl.cli.data import Address, DataMoved, Strict
from ray_sassl.process.console import open_console, write
from ray_sassl.process.ending import exit_code
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.config.schema import ExperimentConfig
    from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
    from ray_sassl.runs.recipe import Recipe

app = typer.Typer()

Experiment = Annotated[str, typer.Argument(metavar="EXPERIMENT_OR_FILE", help="An experiment's name, a YAML file, or a run directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the config, such as train.epochs=10.")]

_PLAIN_EVERY_S = 10.0
_SCORES = {
    "knn_top1": "kNN top-1",
    "linear_top1": "linear top-1",
    "test_knn_top1": "kNN top-1 on the test images",
    "test_linear_top1": "linear top-1 on the test images",
}
"""The scores of a report that are printed; all but those on the test images are on validation images."""


@app.command(epilog="Example: ray-sassl experiments moco_cifar10_cpu > mine.yaml")
def experiments(name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None) -> None:
    """List named experiments, or print one as YAML."""
    if name is not None:
        from ray_sassl.config.files import to_yaml

        write(to_yaml(ray_sassl.load_config(name)))
        return
    console, listed = open_console(), ray_sassl.list_experiments()
    for data in dict.fromkeys(map(_data_of, listed)):
        table = Table(title=data, title_justify="left", title_style="bold", show_header=False)
        for paper in _PAPERS:
            for key in (key for key in listed if (_data_of(key), _paper_of(key)) == (data, paper)):
                table.add_row(paper, key, listed[key])
            table.add_section()
        console.print(table)
    console.print("`ray-sassl experiments NAME` prints one as YAML; `ray-sassl pretrain NAME` runs it.")


_DATA = {"imagenet100": "ImageNet-100", "imagenet": "ImageNet", "cifar10": "CIFAR-10"}
_PAPERS = ("base", "+ SASSL", "+ FA", "+ both")


def _data_of(experiment: str) -> str:
    """The data set in an experiment's name."""
    return next((title for part, title in _DATA.items() if part in experiment.split("_")), "The embedded images")


def _paper_of(experiment: str) -> str:
    """What an experiment adds to a published objective, according to its name."""
    parts = experiment.split("_")
    has_style = "sassl" in parts or experiment == "demo"
    return _PAPERS[has_style + 2 * ("fa" in parts)]


def split_run_dir(overrides: list[str], run_dir: str | None) -> tuple[list[str], str | None]:
    """The overrides without `run_dir=PATH`, another form of --run-dir, and the run directory.

    Raises:
        UsageError: the run directory is given twice.
    """
    given = [text.removeprefix("run_dir=") for text in overrides if text.startswith("run_dir=")] + (
        [run_dir] if run_dir is not None else []
    )
    if len(given) > 1:
        raise UsageError(f"the run directory is given {len(given)} times: {', '.join(given)}")
    return [text for text in overrides if not text.startswith("run_dir=")], next(iter(given), None)


@app.command(epilog="Examples: ray-sassl pretrain photos/ --minutes 30   |   ray-sassl pretrain moco_cifar10_cpu --run-dir runs/first")
def pretrain(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES_OR_EXPERIMENT",
            help="Images (a folder, a glob, shards, a URI), an experiment's name, a YAML file, or a run directory.",
        ),
    ],
    overrides: Overrides = None,
    run_dir: Annotated[str | None, typer.Option(help="A path or s3://, gs:// URI. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")] = False,
    resume_if_begun: Annotated[
        bool, typer.Option("--resume-if-begun", help="Continue the run in the run directory, or start it if there is none.")
    ] = False,
    data_moved: DataMoved = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Training time: the first steps are timed, and the number of epochs follows from their speed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the config (YAML), and for images how it was chosen; train nothing.")
    ] = False,
    strict: Strict = False,
    address: Address = None,
) -> None:
    """Pretrain an encoder.

    Images get a recipe that suits them and this machine, and a table explains it.
    Ctrl-C, SIGTERM and SIGHUP stop at the next step and save a checkpoint to resume from; a second one stops at once.
    """
    from ray_sassl.config.files import to_yaml

    console = open_console()
    overrides, run_dir = split_run_dir(overrides or [], run_dir)
    if minutes is not None:
        console.print("Timing the first steps, to choose the number of epochs ...")
    start = "if begun" if resume_if_begun and not resume else resume
    how = {"resume": start, "data_moved": data_moved, "minutes": minutes, "strict": strict, "address": address}
    plan = ray_sassl.plan_run(experiment, run_dir, overrides=overrides, **how)
    if plan.recipe is not None:
        _show_recipe(console, plan.recipe)
    if minutes is not None:
        epochs, warmup = plan.config.train.epochs, plan.config.optim.warmup_epochs
        overrides = [*overrides, f"train.epochs={epochs}", f"optim.warmup_epochs={warmup}"]  # for the command that goes on
        console.print(f"{epochs:g} epochs take about {minutes:g} minutes here.")
    if dry_run:
        if plan.recipe is None:
            write(to_yaml(plan.config))
        else:
            console.print(f"As YAML: {shlex.join(['ray-sassl', 'experiments', experiment])}", soft_wrap=True)
        return
    console.print(Text.assemble((plan.config.name, "bold"), f" in {plan.run_dir}"))
    with _progress(console, plan.config) as watch:
        how = {"resume": plan.resume, "data_moved": data_moved and plan.resume, "address": address}
        result = ray_sassl.pretrain(plan.config, plan.run_dir, **how, watch=watch)
    console.print(_where(result.run_dir, result.checkpoint))
    if result.status == "interrupted":
        console.print(_interrupted(result.reason))
        words = ["ray-sassl", "pretrain", experiment, *overrides, "--run-dir", plan.run_dir, "--resume"]
        console.print(f"Go on with: {shlex.join(words)}", soft_wrap=True)
        raise typer.Exit(exit_code(result.stopped_by))


def _show_recipe(console: Console, recipe: Recipe) -> None:
    table = Table(title="The recipe for these images", title_justify="left", show_header=False)
    for choice in recipe.choices:
        table.add_row(choice.what, choice.value, Text.assemble(choice.reason, "\n", (choice.change, "dim")))
    console.print(table)
    for note in recipe.notes:
        console.print(Text.assemble(("Note:", "yellow"), f" {note}"))


def _interrupted(reason: str | None) -> Text:
    return Text.assemble(("Interrupted:", "yellow"), f" {reason}")


def _where(run_dir: str, checkpoint: str | None) -> Table:
    from ray_sassl.files import storage

    table = Table(show_header=False)
    for what, name in (
        ("views", "views.png"),
        ("neighbors", "neighbors.png"),
        ("metrics", "metrics.jsonl"),
        ("TensorBoard", "tensorboard"),
        ("bad images", "quarantine.jsonl"),
    ):
        path = storage.join(run_dir, name)
        if storage.exists(path):
            table.add_row(what, path)
    table.add_row("checkpoint", checkpoint or "none yet")
    return table


@contextmanager
def _progress(console: Console, config: ExperimentConfig) -> Iterator:
    """A progress bar with the main metrics on a terminal, or else a line now and then."""
    from ray_sassl.orchestrate.runtime.autoscaler import Announcer
    from ray_sassl.train.config import Progress as RunProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
    )
    last_printed = 0.0
    last_bad = 0
    latest: dict[str, float] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bar:
        task = bar.add_task("starting", total=None, metrics="")
        announce = Announcer(lambda line: bar.console.print(line, soft_wrap=True))

        def watch(update: ProgressUpdate) -> None:
            nonlocal last_printed, last_bad
            announce(update.waiting)
            for line in update.told:
                bar.console.print(Text(line), soft_wrap=True)
            for note in update.notes:
                bar.console.print(Text.assemble(("Warning:", "yellow"), f" {note}"), soft_wrap=True)
            if update.num_bad > last_bad:
                bar.console.print(Text.assemble((f"{update.num_bad:,} bad images so far", "yellow"), "; see quarantine.jsonl"))
                last_bad = update.num_bad
            if update.speed is not None:
                bar.console.print(Text(f"{update.speed.images_per_s:,.0f} images/s. {update.speed.bottleneck}"), soft_wrap=True)
            for report in update.reports:
                latest.update(report)
                if scores := [f"{words} {report[name]:.1%}" for name, words in _SCORES.items() if name in report]:
                    bar.console.print(f"step {report['step']:,}: {', '.join(scores)}")
                if "loss" not in report:
                    continue
                total = RunProgress(_num_rows(latest), config.train.global_batch, config.train.epochs).total_steps
                bar.update(task, description=f"epoch {report['epoch']:.1f}", total=total, completed=report["step"], metrics=_short(report))
                if not console.is_terminal and time.monotonic() - last_printed > _PLAIN_EVERY_S:
                    console.print(f"step {report['step']:,.0f} of {total:,}  epoch {report['epoch']:.2f}  {_short(report)}")
                    last_printed = time.monotonic()

        def _num_rows(report: dict[str, float]) -> int:
            return round(report["step"] * config.train.global_batch / report["epoch"])

        yield watch


def _short(report: dict[str, float]) -> str:
    return (
        f"loss {report['loss']:.3f} (chance {report['chance_loss']:.2f})  std {report['embedding_std']:.2f}  rank "
        f"{report['effective_rank']:.0f}  {report['images_per_s']:,.0f} images/s  waits {report['data_wait']:.0%}"
    )


@app.command(
    epilog="Examples: ray-sassl views moco_cifar10_sassl sassl.alpha='[0.5, 1.0]' --out grid.png   |   ray-sassl views moco_cifar10_sassl "
    "--dose --against fda"
)
def views(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the picture (PNG).")] = "views.png",
    rows: Annotated[int, typer.Option(min=1, help="Images to show.")] = 8,
    dose: Annotated[bool, typer.Option("--dose", help="Measure how strong style, jitter, blur and the others are.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="STYLIZER", help="With --dose: this stylizer too, with the alpha and beta that change pixels as much."),
    ] = None,
    strict: Strict = False,
) -> None:
    """Draw what the network will see.

    Crops, stylized crops and final views of some images, as a PNG.
    """
    console = open_console()
    result = ray_sassl.draw_views(experiment, out, overrides=overrides, num_rows=rows, against=against or (), strict=strict)
    console.print(f"Views: {result.picture}", soft_wrap=True)
    if not (dose or against):
        return
    from ray_sassl.runs.dose import HEADS, NOTE, rows_of

    table = Table(*HEADS, title=f"How strong the augmentations are, on {result.num_images} images", title_justify="left")
    for row in rows_of(result.doses):
        table.add_row(*row)
    for equal in result.equals:
        view, what, *values = next(rows_of([equal.dose]))
        table.add_row(view, f"{what}, {equal.stylizer}", *values)
    console.print(table)
    console.print(NOTE)
    for equal in result.equals:
        console.print(f"Equal dose: {shlex.join(equal.overrides)}", soft_wrap=True)


@app.command(epilog="Example: ray-sassl demo --run-dir runs/my-demo")
def demo(
    run_dir: Annotated[str | None, typer.Option(help="Where the two runs go. [default: runs/demo-DATE-TIME]")] = None,
    address: Address = None,
) -> None:
    """Pretrain with and without style, and compare.

    Two short runs on the embedded data set: minutes on two cores, no network.
    """
    from ray_sassl.api.pretraining import DEMO_RUNS

    console, began = open_console(), time.monotonic()
    titles = {name: title for title, name in DEMO_RUNS.items()}
    with ExitStack() as bars:
        watches: dict[str, Callable[[ProgressUpdate], None]] = {}

        def watch(name: str, update: ProgressUpdate) -> None:
            if name not in watches:
                bars.close()
                console.print(Text.assemble((f"Pretraining {titles[name]}", "bold"), f" ({name})"))
                watches[name] = bars.enter_context(_progress(console, ray_sassl.load_config(name)))
            watches[name](update)

        result = ray_sassl.run_demo(run_dir, address=address, watch=watch)
    if result.scores:
        table = Table("encoder", "kNN top-1", "linear top-1", title="How well the encoders recognize shapes", title_justify="left")
        for title, values in result.scores.items():
            table.add_row(title, *(f"{value:.1%}" for value in values))
        table.add_row("chance", *[f"{result.chance:.1%}"] * 2)
        console.print(table)
    for run in result.runs:
        console.print(_where(run.run_dir, run.checkpoint))
        if run.status == "interrupted":
            console.print(_interrupted(run.reason))
            raise typer.Exit(exit_code(run.stopped_by))
    console.print(f"{time.monotonic() - began:.0f} seconds in total")
