"""`ray-sassl report` and `compare`: HTML pages about runs."""

from __future__ import annotations

from typing import Annotated

import typer

import ray_sassl
from ray_sassl.cli.data import Strict
from ray_sassl.process.console import open_console

app = typer.Typer()


@app.command(epilog="Example: ray-sassl report runs/first --out first.html")
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, local or s3://, gs://; the run may still be training.")],
    out: Annotated[str | None, typer.Option(help="File of the page. [default: report.html in the run directory]")] = None,
) -> None:
    """Write one page about a run.

    The page has the config, how the run ended, curves, views, scores with intervals, and pictures. It is one HTML file.
    """
    open_console().print(f"Report: {ray_sassl.report(run, out)}", soft_wrap=True)


@app.command(
    epilog="Examples: ray-sassl compare runs/plain runs/sassl   |   ray-sassl compare runs/*-seed* --on 'knn linear linear.l2=grid'"
)
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run directories; the others are compared with the first and its other seeds."),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROTOCOLS", help="Compare by these protocols only, with changes as for `evaluate`; runs that lack one are evaluated."
        ),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for comparison.html, .md and .json.")] = "comparison",
    strict: Strict = False,
) -> None:
    """Compare runs.

    The page has scores with paired intervals over test images and seeds, whether differences are more than noise, and curves, views and
    figures side by side. Runs that differ only in their seed are one group.
    """
    from ray_sassl.cli.protocol_words import ALL, parse_protocols, with_all_named, words_of
    from ray_sassl.orchestrate.runtime.progress import progress_bar
    from ray_sassl.runs.pages.comparing import as_markdown

    console = open_console()
    words = words_of(on)
    protocols, changes, watched = [], [], {}
    if words:
        from ray_sassl.cli.event_log import event_log  # torch, which takes seconds
        from ray_sassl.evaluation.detection import DetectConfig

        protocols, changes = parse_protocols(with_all_named(words))
        watched = {"watch": event_log(console, DetectConfig())}
    result = ray_sassl.compare(
        runs,
        out,
        protocols=protocols,
        overrides=changes,
        strict=strict,
        skip_absent=ALL in words,
        progress=progress_bar,
        announce=lambda run, names: console.print(f"Evaluating {run} by {', '.join(names)}", soft_wrap=True),
        **watched,
    )
    console.print(as_markdown(result.comparison), soft_wrap=True)
    for path in result.paths:
        console.print(f"Written: {path}", soft_wrap=True)
