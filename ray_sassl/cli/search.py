"""`ray-sassl search`: find the augmentation strength that suits your images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import ray_sassl
from ray_sassl.cli.data import Address, DataMoved, Strict
from ray_sassl.cli.durations import seconds
from ray_sassl.process.console import open_console
from ray_sassl.process.ending import exit_code

if TYPE_CHECKING:
    from ray_sassl.orchestrate.tune.search import StudyState
    from ray_sassl.study.record import StudyConfig, TrialRecord

_PLAIN_EVERY_S = 30.0
_SHOWN_TRIALS = 12
_STYLE = {"finished": "green", "stopped": "yellow", "failed": "red", "interrupted": "magenta", "running": "cyan"}


class RunByDefault(TyperGroup):
    """`VERB NAME ...` is `VERB run NAME ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


_HELP = """Search for the settings that suit your images, on Ray Tune.

\b
  ray-sassl search SPACE [PATH=VALUE]... [OPTIONS]     run a study (all options: ray-sassl search run --help)
  ray-sassl search spaces                              list the spaces
  ray-sassl search report DIR                          draw a study's report, also while it is running
  ray-sassl search compare DIR DIR                     compare two studies
"""

app = typer.Typer(cls=RunByDefault, no_args_is_help=True, help=_HELP)


class Searcher(StrEnum):
    """What suggests the next trial."""

    random = "random"
    grid = "grid"
    optuna = "optuna"
    hyperband_bayes = "hyperband-bayes"


class Scheduler(StrEnum):
    """What stops trials early."""

    fifo = "fifo"
    asha = "asha"
    pbt = "pbt"
    median = "median"


StudyDir = Annotated[str, typer.Argument(metavar="DIR", help="A study directory.")]


@app.command(
    "run",
    epilog="Example: ray-sassl search style_strength train.epochs=3 data.path='shards/*.parquet' --trials 20 --study-dir studies/mine",
)
def run_command(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A space's name, or a .py or .yaml file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the base experiment; what they set is not searched."),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Another base experiment: a name, a YAML file or a run directory.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials. [default: the space's; the whole grid of a grid search]")
    ] = None,
    time_budget: Annotated[str | None, typer.Option(help="Stop after this time, such as 90m or 2h; --resume continues.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once. [default: as many as the cluster has room for]")
    ] = None,
    searcher: Annotated[Searcher | None, typer.Option(help="What suggests trials. [default: the space's]")] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="What stops trials early. [default: the space's]")] = None,
    grace: Annotated[
        int | None, typer.Option(min=1, help="Evaluations that a trial gets before it may be stopped. [default: the space's]")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="A metric, or METRIC:min. Several give a Pareto front, and the first one decides which trials are stopped."),
    ] = None,
    strict: Strict = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the suggestions; trials use the experiment's seed.")] = 0,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed trial is restarted from its checkpoint.")] = 1,
    study_dir: Annotated[str | None, typer.Option(help="A path or s3://, gs:// URI. [default: studies/SPACE]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in the study directory.")] = False,
    resume_if_begun: Annotated[
        bool, typer.Option("--resume-if-begun", help="Continue the study in the study directory, or start it if there is none.")
    ] = False,
    data_moved: DataMoved = False,
    address: Address = None,
) -> None:
    """Run a study.

    Each trial is a whole pretraining run. After Ctrl-C or SIGTERM the running trials save checkpoints; the same command with --resume
    continues.
    """
    from ray_sassl.api.search import make_study
    from ray_sassl.files import storage

    console = open_console()
    wishes = {
        "experiment": experiment,
        "overrides": overrides,
        "trials": trials,
        "searcher": searcher.value if searcher else None,
        "scheduler": scheduler.value if scheduler else None,
        "grace": grace,
        "objectives": objective or (),
        "strict": strict,
    }
    study = make_study(space, **wishes)
    study_dir = study_dir or f"studies/{study.name}"
    console.print(Text.assemble((study.name, "bold"), f" in {study_dir}: {study.num_trials} trials, {study.searcher}, {study.scheduler}"))
    with live(console) as watch:
        result = ray_sassl.search(
            space,
            study_dir,
            **wishes,
            time_budget_s=seconds(time_budget) if time_budget else None,
            max_concurrent=max_concurrent,
            seed=seed,
            retries=retries,
            resume="if begun" if resume_if_begun and not resume else resume,
            data_moved=data_moved,
            address=address,
            watch=watch,
        )
    console.print(results_table(result.study, result.trials))
    for name in ("trials.parquet", "trials.csv", "best.yaml"):
        console.print(f"{name.partition('.')[0]}: {storage.join(study_dir, name)}", soft_wrap=True)
    console.print(f"report: {result.report}", soft_wrap=True)
    if result.is_interrupted:
        console.print(Text.assemble(("Interrupted:", "yellow"), " the same command with --resume continues."))
        raise typer.Exit(exit_code(result.stopped_by))
    if result.trials and all(trial.state == "failed" for trial in result.trials):
        console.print(Text.assemble(("No trial finished:", "red"), " the table has the reasons."))
        raise typer.Exit(1)


@app.command("spaces", epilog="Example: ray-sassl search spaces")
def spaces_command() -> None:
    """List the search spaces."""
    table = Table("space", "experiment", "what is searched", title="Search spaces", title_justify="left")
    for source in ray_sassl.list_spaces().values():
        table.add_row(source.name, source.experiment, source.about)
    open_console().print(table)


@app.command("report", epilog="Example: ray-sassl search report studies/style_strength")
def report_command(study_dir: StudyDir) -> None:
    """Draw a study's report, also while it is running."""
    console = open_console()
    result = ray_sassl.report_study(study_dir)
    console.print(results_table(result.study, result.trials))
    console.print(f"report: {result.report}", soft_wrap=True)


@app.command("compare", epilog="Example: ray-sassl search compare studies/moco studies/simclr --out compare.html")
def compare_command(
    first: StudyDir,
    second: StudyDir,
    out: Annotated[str, typer.Option(help="Where to write the comparison (HTML).")] = "compare.html",
) -> None:
    """Compare two studies."""
    console = open_console()
    table = Table("", first, second, title="Studies", title_justify="left")
    for row in ray_sassl.compare_studies(first, second, out):
        table.add_row(*row)
    console.print(table)
    console.print(f"comparison: {out}", soft_wrap=True)


def results_table(study: StudyConfig, trials: list[TrialRecord], shown: int = 10) -> Table:
    """The best trials, and the number of trials in each state."""
    from ray_sassl.study.record import ranked

    goal = study.goals[0]
    best = ranked(trials, goal)[:shown]
    outcomes = {state: sum(trial.state == state for trial in trials) for state in _STYLE}
    told = ", ".join(f"{count} {state}" for state, count in outcomes.items() if count)
    table = Table(
        "trial", "parameters", "epochs", *(o.metric for o in study.goals), "state", title=f"{study.name}: {told}", title_justify="left"
    )
    for trial in best + [trial for trial in trials if trial.state == "failed" and trial not in best]:
        table.add_row(*_row(study, trial))
    return table


def _row(study: StudyConfig, trial: TrialRecord, progress: dict[str, float] | None = None) -> list[Any]:
    from ray_sassl.study.record import figure

    epoch = (progress or {}).get("epoch") or trial.epochs
    values = [figure(goal.metric, trial.value(goal.metric)) for goal in study.goals]
    state = trial.state + (
        f": {trial.reason}" if trial.state == "failed" else f" ({trial.attempts}. attempt)" if trial.attempts > 1 else ""
    )
    return [str(trial.number), _point(trial), f"{epoch:.2f}", *values, Text(state, style=_STYLE[trial.state])]


def _point(trial: TrialRecord) -> str:
    """The parameters with the last two parts of their names, which distinguish them."""
    return "  ".join(f"{'.'.join(name.split('.')[-2:])}={value}" for name, value in trial.point.items())


def status(state: StudyState) -> Group:
    """The running trials and the best one, for a terminal."""
    from ray_sassl.study.record import best_trial, figure

    study, records = state.study, state.records
    goal = study.goals[0]
    open_ones = [trial for trial in records if trial.is_open]
    done = [trial for trial in records if not trial.is_open]
    table = Table("trial", "parameters", "epoch", *(o.metric for o in study.goals), "state")
    for trial in (done[-max(0, _SHOWN_TRIALS - len(open_ones)) :] if len(open_ones) < _SHOWN_TRIALS else []) + open_ones[:_SHOWN_TRIALS]:
        table.add_row(*_row(study, trial, state.progress.get(trial.number)))
    best = best_trial(records, goal)
    line = f"{len(done)} of {study.num_trials} trials ended, {len(open_ones)} running, {_clock(time.monotonic() - state.began)} so far"
    if (left := remaining_s(state)) is not None:
        line += f", about {_clock(left)} to go"
    if best is not None:
        line += f"\nbest so far: trial {best.number}, {goal.metric} {figure(goal.metric, best.value(goal.metric))}: {_point(best)}"
    if state.waiting:
        line += f"\nwaiting: {state.waiting}"
    return Group(table, Text(line))


def remaining_s(state: StudyState) -> float | None:
    """Seconds to the end of the study if later trials take as long as those that have ended; None before the first one ends."""
    walls = [trial.wall_s for trial in state.records if not trial.is_open and trial.wall_s]
    if not walls:
        return None
    mean = sum(walls) / len(walls)
    under_way = sum(max(0.0, mean - trial.wall_s) for trial in state.records if trial.is_open)
    waiting = state.study.num_trials - len(state.records)
    return (under_way + waiting * mean) / state.concurrent


def _clock(seconds_: float) -> str:
    minutes, rest = divmod(round(seconds_), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def live(console: Console) -> Iterator[Any]:
    """A table that is kept up to date on a terminal, or else a line for each trial that ends."""
    from ray_sassl.orchestrate.runtime.autoscaler import Announcer

    told: set[int] = set()
    last_s = 0.0
    announce = Announcer(lambda line: console.print(line, soft_wrap=True))

    def tell(state: StudyState) -> None:
        nonlocal last_s
        announce(state.waiting)
        for trial in state.records:
            if not trial.is_open and trial.number not in told:
                told.add(trial.number)
                cells = [str(cell) for cell in _row(state.study, trial)]
                console.print(f"trial {'  '.join(cells)}", soft_wrap=True)
        if time.monotonic() - last_s > _PLAIN_EVERY_S:
            last_s = time.monotonic()
            running = [
                f"{trial.number}: epoch {state.progress.get(trial.number, {}).get('epoch', 0):.2f}"
                for trial in state.records
                if trial.is_open
            ]
            console.print(f"{len(told)} of {state.study.num_trials} trials ended; running {', '.join(running) or 'none'}")

    if not console.is_terminal:
        yield tell
        return
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda state: live.update(status(state))
