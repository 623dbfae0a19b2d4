"""Pages about runs, from Python. What evaluates is imported where a comparison evaluates, since torch takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_sassl.evaluation import Progress, no_progress
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.runs.pages.comparing import Comparison
from ray_sassl.runs.pages.comparing import compare as compare_records
from ray_sassl.runs.pages.comparison_page import write_comparison
from ray_sassl.runs.pages.run_page import write_run_report
from ray_sassl.runs.record import read_run

if TYPE_CHECKING:
    from ray_sassl.orchestrate.batch.evaluate import Watch
    from ray_sassl.runs.configs import Overrides


def report(run: str | os.PathLike[str], out: str | None = None) -> str:
    """Write one HTML page about a run: what was run, how it ended, curves, views, scores and pictures. Returns its path.

    Args:
        run: A run directory, local or a URI; the run may still be going.
        out: Path or URI of the page; by default `report.html` in the run directory.

    Raises:
        RunDirectoryError: no run is there.
    """
    return write_run_report(os.fspath(run), out)


@dataclass(frozen=True)
class CompareResult:
    """Runs side by side.

    Attributes:
        comparison: Scores with paired intervals, and whether a difference is more than noise.
        paths: The page and the tables that were written.
    """

    comparison: Comparison
    paths: list[str]


def compare(
    runs: Sequence[str | os.PathLike[str]],
    out: str = "comparison",
    *,
    protocols: Sequence[str | ProtocolConfig] = (),
    overrides: Overrides = None,
    strict: bool = False,
    skip_absent: bool = False,
    progress: Progress = no_progress,
    watch: Watch = lambda event: None,
    announce: Callable[[str, list[str]], object] = lambda run, protocols: None,
) -> CompareResult:
    """Compare runs: scores with paired intervals over test images and seeds. Runs that differ only in their seed are one group.

    Args:
        runs: Run directories; the first one, with its other seeds, is the baseline of the comparison.
        out: Folder or URI for `comparison.html`, `.md` and `.json`.
        protocols: Compare only by these, and evaluate runs that lack one; by default by all protocols with scores.
        overrides: Changes to the runs' configs for these evaluations.
        strict: Refuse data of which anything is left out, instead of saying so.
        skip_absent: Whether a protocol without images is skipped instead of being an error.
        progress: Shows the progress of features.
        watch: Called as evaluations go on.
        announce: Called with a run and its missing protocols before it is evaluated.

    Raises:
        UsageError: a run has no scores, or was evaluated differently from the others.
    """
    paths = [os.fspath(run) for run in runs]
    names = None
    if protocols:
        from ray_sassl.evaluation.run import protocol_configs, without_scores
        from ray_sassl.orchestrate.batch.evaluate import evaluate

        configs = protocol_configs(protocols)
        for path in dict.fromkeys(paths):
            if missing := without_scores(configs, path):
                announce(path, sorted(config.name for config in missing))
                evaluate(path, missing, overrides=overrides, strict=strict, skip_absent=skip_absent, progress=progress, watch=watch)
        names = [config.name for config in configs]
    comparison = compare_records([read_run(path) for path in paths], names)
    return CompareResult(comparison, write_comparison(comparison, out))
