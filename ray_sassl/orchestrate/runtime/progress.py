"""A progress bar for work counted in images or shards; lines of text if the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ray_sassl.process.console import open_console

_LINE_EVERY_S = 30.0


class _RateColumn(ProgressColumn):
    """The rate since the start, without work done before."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["skipped"]
        return Text(f"{done / task.elapsed:,.1f}/s" if task.elapsed and done else "")


@contextmanager
def progress_bar(what: str, total: int, *, skipped: int = 0, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar within the block, as a function that advances it. In a log file, lines are printed regularly and at the end.

    Args:
        skipped: Work that was done before; it counts as done, but not for the rate.
    """
    console = open_console()
    if is_shown and not console.is_terminal:
        yield _lines(console, what, total, skipped)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not is_shown) as bar:
        task = bar.add_task(what, total=total, completed=skipped, skipped=skipped)
        yield lambda amount: bar.advance(task, amount)


def _lines(console: Console, what: str, total: int, skipped: int) -> Callable[[int], None]:
    started = said = time.monotonic()
    done = skipped

    def advance(amount: int) -> None:
        nonlocal done, said
        done += amount
        now = time.monotonic()
        if now - said < _LINE_EVERY_S and done < total:
            return
        said = now
        rate = (done - skipped) / max(now - started, 1e-9)
        left = f", about {timedelta(seconds=round((total - done) / rate))} left" if rate and done < total else ""
        passed = timedelta(seconds=round(now - started))
        console.print(f"{what}: {done:,} of {total:,}, {rate:,.1f}/s, {passed} passed{left}", soft_wrap=True)

    return advance
