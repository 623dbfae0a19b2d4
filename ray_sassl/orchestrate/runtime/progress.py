"""A progress bar for work that is counted in images or shards; lines of text where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ray_sassl.printing import open_console

_LINE_EVERY_S = 30.0


class _RateColumn(ProgressColumn):
    """So many a second, over what was done since the start."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["skipped"]
        return Text(f"{done / task.elapsed:,.1f}/s" if task.elapsed and done else "")


@contextmanager
def progress_bar(what: str, total: int, *, skipped: int = 0, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar, and within the block the function that moves it on. In a log file it is a line now and then, and one at the end.

    Args:
        skipped: What was done before; it counts as done and not for the rate.
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
