"""Pages about runs, from Python."""

from __future__ import annotations

import os

from ray_sassl.runs.pages.run_page import write_run_report


def report(run: str | os.PathLike[str], out: str | None = None) -> str:
    """Write one HTML page about a run: what was run, how it ended, curves, views, scores and pictures. Returns its path.

    Args:
        run: A run directory, local or a URI; the run may still be going.
        out: Path or URI of the page; by default `report.html` in the run directory.

    Raises:
        RunDirectoryError: no run is there.
    """
    return write_run_report(os.fspath(run), out)
