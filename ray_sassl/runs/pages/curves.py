"""Curves of logged metrics, as SVG: one panel per metric, one line per run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ray_sassl.evaluation.figures import plain_texts
from ray_sassl.files.json_files import as_number
from ray_sassl.process.console import printable
from ray_sassl.process.stages import RANK_STAGES, STREAM_STAGES
from ray_sassl.runs.pages.markup import Html, element, joined
from ray_sassl.runs.record import RunRecord

PANELS = {
    "loss": "loss",
    "embedding_std": "embedding std (1: spread evenly, 0: collapsed)",
    "effective_rank": "effective rank of the embeddings",
    "knn_top1": "kNN top-1 on validation images",
    "learning_rate": "learning rate",
    "images_per_s": "images/s",
    "data_wait": "share of time waiting for data",
}
"""The metrics that are drawn first, with their titles; others follow with their names as titles."""
_BESIDE = {"loss": "chance_loss"}
_FROM_ZERO = ("embedding_std", "effective_rank", "images_per_s", "data_wait")
_OF_SPEED = {f"share_{stage}" for stage in RANK_STAGES} | {f"{what}_{stage}" for what in ("busy", "rate") for stage in STREAM_STAGES}
"""These have a section of a run's page to themselves."""
_NOT_DRAWN = {"step", "epoch", "test_knn_top1", "test_linear_top1", *_BESIDE.values()} | _OF_SPEED
_COLORS = ("#2471a3", "#d35400", "#1b7f4d", "#8e44ad", "#b7950b", "#117a8b", "#922b21", "#5d6d7e")
_COLUMNS = 3
_MOST_PANELS = 60


@dataclass(frozen=True)
class Line:
    """A run and its group: runs of one group share a color and an entry in the legend."""

    run: RunRecord
    group: str


def run_curves(lines: Sequence[Line]) -> Html | None:
    """Curves of what the runs logged, but for where their time went, or None if they logged nothing. Dashed: the loss of an encoder that
    cannot distinguish images."""
    logged = {name for line in lines for point in line.run.metrics for name in point if name not in _NOT_DRAWN}
    names = [name for name in PANELS if name in logged] + sorted(logged - PANELS.keys())
    names = [name for name in names if any(line.run.curve(name)[0] for line in lines)]
    if not names:
        return None
    unshown, names = names[_MOST_PANELS:], names[:_MOST_PANELS]
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.7 * columns, 2.5 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    groups = list(dict.fromkeys(line.group for line in lines))
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        _panel(axes, name, lines, groups)
    if len(groups) > 1:
        marks = [Line2D([], [], color=_COLORS[number % len(_COLORS)]) for number in range(len(groups))]
        figure.legend(marks, groups, loc="outside upper left", frameon=False, fontsize=8, ncols=min(4, len(groups)))
    if unshown:
        return joined([svg(figure), element('<p class="note">{} more metrics are not drawn.</p>', len(unshown))], "\n")
    return svg(figure)


def svg(figure: Figure) -> Html:
    """The figure as an `svg` element for a page; matplotlib escapes its texts, which become outlines of letters."""
    buffer = io.StringIO()
    plain_texts(figure)
    with rc_context({"svg.hashsalt": "ray-sassl"}):  # equal figures give equal text
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return Html(printable(text[text.index("<svg") :], keep="\n\t"))


def _panel(axes: Axes, name: str, lines: Sequence[Line], groups: Sequence[str]) -> None:
    in_epochs = all(_epochs_per_step(line.run) for line in lines)
    for line in lines:
        steps, values = line.run.curve(name)
        scale = (_epochs_per_step(line.run) or 1.0) if in_epochs else 1.0
        color = _COLORS[groups.index(line.group) % len(_COLORS)]
        axes.plot([step * scale for step in steps], values, color=color, linewidth=1.3, marker="." if len(steps) < 12 else None)
        if name in _BESIDE:
            steps, values = line.run.curve(_BESIDE[name])
            axes.plot([step * scale for step in steps], values, color=color, linewidth=1, linestyle="--", alpha=0.6)
    if name in _FROM_ZERO:
        axes.set_ylim(bottom=0)
    axes.set_title(PANELS.get(name, name), fontsize=9, loc="left")
    axes.set_xlabel("epoch" if in_epochs else "step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _epochs_per_step(run: RunRecord) -> float | None:
    """Epochs per step, from the last line that has both; None if no line has."""
    return next((line["epoch"] / line["step"] for line in reversed(run.metrics) if as_number(line.get("epoch")) and line["step"]), None)
