"""`ray-sassl report`: what a run was and what became of it, as a page."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()


@app.command(epilog="Example: ray-sassl report runs/first --out first.html")
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, local or s3://, gs://; the run may still be going.")],
    out: Annotated[str | None, typer.Option(help="The page. [default: report.html in the run directory]")] = None,
) -> None:
    """Write one page about a run.

    What was run, how it ended, curves, views, scores with their intervals and pictures; one HTML file that needs nothing else.
    """
    from ray_sassl.report.run_page import write_run_report

    Console().print(f"Report: {write_run_report(run, out)}", soft_wrap=True, highlight=False)
