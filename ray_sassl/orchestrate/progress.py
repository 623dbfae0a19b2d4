"""A progress bar for work that is counted in images or shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    """So many a second, over what was done since the start."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["skipped"]
        return Text(f"{done / task.elapsed:,.1f}/s" if task.elapsed and done else "")


@contextmanager
def progress_bar(what: str, total: int, *, skipped: int = 0, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar, and within the block the function that moves it on.

    Args:
        skipped: What was done before; it counts as done and not for the rate.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not is_shown) as bar:
        task = bar.add_task(what, total=total, completed=skipped, skipped=skipped)
        yield lambda amount: bar.advance(task, amount)
