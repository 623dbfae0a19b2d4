"""What the verbs `demo`, `experiments`, `pretrain` and `views` do and print."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ray_sassl.config.files import read_config, to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.plugins import UsageError
from ray_sassl.train.loop import Progress as RunProgress

_PLAIN_EVERY_S = 10.0

Resume = bool | Literal["if begun"]
"""Whether to go on with the run in the run directory."""


def load_config(experiment: str, overrides: list[str]) -> ExperimentConfig:
    """The config that a name, a YAML file or a run directory stands for, with the overrides applied."""
    from ray_sassl.experiments import load_experiment
    from ray_sassl.runs.directory import CONFIG

    if experiment.endswith((".yaml", ".yml")):
        if not storage.exists(experiment):
            raise UsageError(f"there is no file {experiment}")
        config = read_config(experiment)
    elif storage.exists(path := storage.join(experiment, CONFIG)):
        config = read_config(path)
    else:
        config = load_experiment(experiment)
    return apply_overrides(config, overrides)


def experiments(console: Console, name: str | None) -> None:
    """Print one experiment as YAML, or a table of all."""
    from ray_sassl.experiments import experiments as known
    from ray_sassl.experiments import load_experiment

    if name is not None:
        print(to_yaml(load_experiment(name)), end="")
        return
    table = Table("experiment", "what it is", title="Experiments", title_justify="left")
    for key, function in known().items():
        table.add_row(key, (function.__doc__ or "").splitlines()[0])
    console.print(table)
    console.print("`ray-sassl experiments NAME` prints one as YAML; `ray-sassl pretrain NAME` runs it.")


def split_run_dir(overrides: list[str], run_dir: str | None) -> tuple[list[str], str | None]:
    """The overrides without `run_dir=PATH`, which is another way to write --run-dir, and the run directory.

    Raises:
        UsageError: it is given twice.
    """
    given = [text.removeprefix("run_dir=") for text in overrides if text.startswith("run_dir=")] + (
        [run_dir] if run_dir is not None else []
    )
    if len(given) > 1:
        raise UsageError(f"the run directory is given {len(given)} times: {', '.join(given)}")
    return [text for text in overrides if not text.startswith("run_dir=")], next(iter(given), None)


def pretrain(console: Console, experiment: str, overrides: list[str], run_dir: str | None, *, resume: Resume, address: str | None) -> int:
    """Run, show progress, and say where everything is; the exit code is 130 after Ctrl-C."""
    from ray_sassl.orchestrate.pretraining import launch
    from ray_sassl.runs.directory import CONFIG, has_begun

    overrides, run_dir = split_run_dir(overrides, run_dir)
    config = load_config(experiment, overrides)
    if run_dir is None:
        run_dir = experiment if storage.exists(storage.join(experiment, CONFIG)) else f"runs/{config.name}"
    if resume == "if begun":
        resume = has_begun(run_dir)
    console.print(f"[bold]{config.name}[/] in {run_dir}", highlight=False)
    with _progress(console, config) as watch:
        result = launch.pretrain(config, run_dir, resume=resume, address=address, watch=watch)
    console.print(_where(result.run_dir, result.checkpoint))
    if result.status == "interrupted":
        console.print(f"[yellow]Interrupted:[/] {result.reason}")
        console.print(f"Go on with: ray-sassl pretrain {experiment} {' '.join(overrides)} --run-dir {run_dir} --resume", soft_wrap=True)
        return 130
    return 0


def _where(run_dir: str, checkpoint: str | None) -> Table:
    table = Table(show_header=False)
    for what, name in (
        ("views", "views.png"),
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
    """A bar with what matters beside it on a terminal; a line now and then elsewhere."""
    from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
    from ray_sassl.orchestrate.runtime.autoscaler import Announcer

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    last_printed = 0.0
    last_bad = 0
    latest: dict[str, float] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bar:
        task = bar.add_task("starting", total=None, metrics="")
        announce = Announcer(lambda line: bar.console.print(escape(line), highlight=False, soft_wrap=True))

        def watch(update: ProgressUpdate) -> None:
            nonlocal last_printed, last_bad
            announce(update.waiting)
            for note in update.notes:
                bar.console.print(f"[yellow]Warning:[/] {escape(note)}", soft_wrap=True)
            if update.num_bad > last_bad:
                bar.console.print(f"[yellow]{update.num_bad:,} bad images so far[/]; see quarantine.jsonl")
                last_bad = update.num_bad
            for report in update.reports:
                latest.update(report)
                if "knn_top1" in report:
                    bar.console.print(f"step {report['step']:,}: kNN top-1 {report['knn_top1']:.1%}", highlight=False)
                if "loss" not in report:
                    continue
                total = RunProgress(_num_rows(latest), config.train.global_batch, config.train.epochs).total_steps
                bar.update(task, description=f"epoch {report['epoch']:.1f}", total=total, completed=report["step"], metrics=_short(report))
                if not console.is_terminal and time.monotonic() - last_printed > _PLAIN_EVERY_S:
                    console.print(
                        f"step {report['step']:,.0f} of {total:,}  epoch {report['epoch']:.2f}  {_short(report)}", highlight=False
                    )
                    last_printed = time.monotonic()

        def _num_rows(report: dict[str, float]) -> int:
            return round(report["step"] * config.train.global_batch / report["epoch"])

        yield watch


def _short(report: dict[str, float]) -> str:
    return (
        f"loss {report['loss']:.3f} (chance {report['chance_loss']:.2f})  std {report['embedding_std']:.2f}  rank {report['effective_rank']:.0f}  "
        f"{report['images_per_s']:,.0f} images/s  waits {report['data_wait']:.0%}"
    )


def views(console: Console, experiment: str, overrides: list[str], out: str, rows: int) -> None:
    """Draw the views of some images of the experiment's data."""
    from ray_sassl.data.reading import build_index
    from ray_sassl.runs.directory import INDEX
    from ray_sassl.runs.pictures import views_picture
    from ray_sassl.runs.process import build_stylize_block, view_source

    config = load_config(experiment, overrides)
    with tempfile.TemporaryDirectory() as folder:
        build_index(config.data).save(Path(folder) / INDEX)
        picture = views_picture(config, view_source(config, folder), build_stylize_block(config, "cpu", 1), rows)
    storage.write_bytes(out, picture)
    console.print(f"Views: {out}")


def demo(console: Console, run_dir: str | None, address: str | None) -> None:
    """Both demo runs, then one table of what they learned."""
    from ray_sassl.evaluation.datasets import load_evaluation_data
    from ray_sassl.evaluation.protocols.knn import Config as Knn
    from ray_sassl.evaluation.protocols.linear import Config as Linear
    from ray_sassl.evaluation.subject import score, untrained_backbone
    from ray_sassl.experiments import load_experiment
    from ray_sassl.orchestrate.pretraining import launch
    from ray_sassl.orchestrate.runtime.session import ray_session
    from ray_sassl.runs.directory import find_checkpoint
    from ray_sassl.runs.process import load_backbone

    began = time.monotonic()
    folder = run_dir or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}"
    results = {}
    with ray_session(address):
        for title, name in (("without style augmentation", "demo_plain"), ("with style augmentation", "demo")):
            console.print(f"[bold]Pretraining {title}[/] ({name})")
            with _progress(console, config := load_experiment(name)) as watch:
                results[title] = launch.pretrain(config, storage.join(folder, name), address=address, watch=watch)
            if results[title].status == "interrupted":
                console.print(f"[yellow]Interrupted:[/] {results[title].reason}")
                return
    config = load_experiment("demo")
    with console.status("evaluating"):
        data = load_evaluation_data(config)
        protocols = [Knn(), Linear()]
        table = Table("encoder", "kNN top-1", "linear top-1", title="What the encoders know about shapes", title_justify="left")
        rows = {"untrained": untrained_backbone(config)}
        rows |= {f"pretrained {title}": load_backbone(find_checkpoint(result.run_dir))[1] for title, result in results.items()}
        for title, backbone in rows.items():
            knn, linear = score(config, backbone, data, protocols)
            table.add_row(title, f"{knn['top1']:.1%}", f"{linear['top1']:.1%}")
        table.add_row("chance", f"{data.chance:.1%}", f"{data.chance:.1%}")
    console.print(table)
    for result in results.values():
        console.print(_where(result.run_dir, result.checkpoint))
    console.print(f"{time.monotonic() - began:.0f} seconds in all")
