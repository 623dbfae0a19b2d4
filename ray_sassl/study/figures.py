"""The figures of a study's report, as SVG.

Trials that were stopped early cannot be compared by their last values, so parameters are compared at one evaluation of all trials: the
latest that enough of them have reached.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ray_sassl.files.json_files import as_number
from ray_sassl.process.console import one_line
from ray_sassl.runs.pages.curves import svg
from ray_sassl.runs.pages.markup import Html
from ray_sassl.study.record import StudyConfig, TrialRecord, pareto_front
from ray_sassl.study.searcher import Known, optuna_study
from ray_sassl.study.space import Dimension, Objective

_COLORS = {"finished": "#1b7f4d", "stopped": "#d08a00", "failed": "#c0392b", "interrupted": "#8e44ad", "running": "#2471a3"}
_MAP = "viridis"
_CELLS = 6
LEAST_FOR_IMPORTANCE = 8


def fair_evaluation(trials: Sequence[TrialRecord], metric: str) -> tuple[int, dict[int, float]]:
    """The latest evaluation that half of the evaluated trials (at least three, if there are) have reached, and the metric there by
    trial."""
    curves = {trial.number: {e.number: e.metrics[metric] for e in trial.curve if _is_number(e.metrics.get(metric))} for trial in trials}
    curves = {number: curve for number, curve in curves.items() if curve}
    if not curves:
        return 0, {}
    enough = min(len(curves), max(3, math.ceil(len(curves) / 2)))
    reached = sorted({number for curve in curves.values() for number in curve}, reverse=True)
    latest = next((number for number in reached if sum(number in curve for curve in curves.values()) >= enough), reached[-1])
    return latest, {number: curve[latest] for number, curve in curves.items() if latest in curve}


def learning_curves(trials: Sequence[TrialRecord], goal: Objective) -> Html:
    """The objective over epochs; a stopped trial ends with a cross."""
    figure, axes = _figure(8, 4)
    for trial in trials:
        points = [(e.metrics.get("epoch", e.number), e.metrics[goal.metric]) for e in trial.curve if _is_number(e.metrics.get(goal.metric))]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        color = _COLORS[trial.state]
        axes.plot(epochs, values, color=color, alpha=0.75, linewidth=1.4, marker="." if len(points) == 1 else None)
        axes.plot(epochs[-1], values[-1], marker="x" if trial.state == "stopped" else "o", color=color, markersize=5)
        axes.annotate(str(trial.number), (epochs[-1], values[-1]), fontsize=7, xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xlabel("epoch")
    axes.set_ylabel(goal.metric)
    for state in dict.fromkeys(trial.state for trial in trials if trial.curve):
        axes.plot([], [], color=_COLORS[state], marker="x" if state == "stopped" else "o", label=state)
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def strength_map(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float], label: str) -> Html | None:
    """The objective over the midpoints of alpha and beta: a cell's color is the mean of its trials. None unless both are searched."""
    middles = {name: {t.number: _middle(t, name) for t in trials if t.number in values} for name in ("sassl.alpha", "sassl.beta")}
    numbers = [n for n in values if middles["sassl.alpha"].get(n) is not None and middles["sassl.beta"].get(n) is not None]
    if not numbers:
        return None
    x, y = (np.array([middles[name][n] for n in numbers], float) for name in ("sassl.alpha", "sassl.beta"))
    z = np.array([values[n] for n in numbers])
    edges = np.linspace(0, max(float(x.max()), float(y.max()), 0.1) * 1.02, _CELLS + 1)
    counts, *_ = np.histogram2d(x, y, bins=(edges, edges))
    sums, *_ = np.histogram2d(x, y, bins=(edges, edges), weights=z)
    means = np.ma.masked_where(counts == 0, sums / np.maximum(counts, 1))
    figure, axes = _figure(5.2, 4.4)
    norm = _norm(z)
    mesh = axes.pcolormesh(edges, edges, means.T, cmap=_MAP, norm=norm, alpha=0.55)
    axes.scatter(x, y, c=z, cmap=_MAP, norm=norm, edgecolors="black", linewidths=0.8, s=42, zorder=3)
    for number, at_x, at_y in zip(numbers, x, y, strict=True):
        axes.annotate(str(number), (at_x, at_y), fontsize=7, xytext=(5, 4), textcoords="offset points")
    axes.plot(0.2, 0.2, marker="+", color="red", markersize=12, linestyle="none", label="papers' default (0.1 to 0.3)")
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_xlabel("alpha, middle of its interval")
    axes.set_ylabel("beta, middle of its interval")
    figure.colorbar(mesh, ax=axes, label=label)
    return svg(figure)


def slices(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float], label: str) -> Html | None:
    """The objective against each dimension by itself."""
    dimensions = [d for d in study.space.dimensions if sum(d.name in t.point for t in trials if t.number in values) > 1]
    if not dimensions:
        return None
    columns = min(4, len(dimensions))
    rows = math.ceil(len(dimensions) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(dimensions) :]:
        axes.set_visible(False)
    for number, (axes, dimension) in enumerate(zip(grid.flat, dimensions, strict=False)):
        there = [t for t in trials if t.number in values and dimension.name in t.point]
        positions, ticks = _positions(dimension, there)
        axes.scatter(positions, [values[t.number] for t in there], c=[_COLORS[t.state] for t in there], s=24, alpha=0.85)
        axes.set_xlabel(_short(dimension.name), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if ticks is not None:
            axes.set_xticks(range(len(ticks)), ticks, fontsize=7, rotation=20)
        elif dimension.is_log:
            axes.set_xscale("log")
        if number % columns == 0:
            axes.set_ylabel(label, fontsize=8)
    return svg(figure)


def parallel_coordinates(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float], label: str) -> Html | None:
    """One line per trial over all dimensions, the best drawn last; a line has a gap where a trial lacks a dimension."""
    dimensions = [d for d in study.space.dimensions if any(d.name in t.point for t in trials)]
    there = sorted((t for t in trials if t.number in values), key=lambda t: study.goals[0].sign * values[t.number])
    if len(there) < 2 or len(dimensions) < 2:
        return None
    figure, axes = _figure(max(7.0, 1.5 * len(dimensions)), 4.2)
    norm = _norm(np.array(list(values.values())))
    colors = colormaps[_MAP]
    for trial in there:
        heights = [_height(dimension, trial) for dimension in dimensions] + [float(norm(values[trial.number]))]
        axes.plot(range(len(heights)), heights, color=colors(norm(values[trial.number])), alpha=0.8, linewidth=1.6)
    names = [_short(dimension.name) for dimension in dimensions] + [one_line(label)]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=25, ha="right")
    axes.set_yticks([])
    for place, dimension in enumerate(dimensions):
        axes.axvline(place, color="0.6", linewidth=0.8)
        low, high = (
            (_word(dimension.choices[0]), _word(dimension.choices[-1]))
            if dimension.choices
            else (f"{dimension.low:g}", f"{dimension.high:g}")
        )
        axes.annotate(low, (place, -0.06), ha="center", fontsize=6, color="0.35")
        axes.annotate(high, (place, 1.03), ha="center", fontsize=6, color="0.35")
    axes.axvline(len(dimensions), color="0.3")
    axes.set_ylim(-0.1, 1.1)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return svg(figure)


def importance(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float]) -> tuple[Html, dict[str, float]] | None:
    """fANOVA (Hutter, Hoos and Leyton-Brown 2014): the share of the objective's variance of each parameter that every trial has.

    None with fewer than eight trials, which are too few for an estimate.
    """
    known = [Known(t.point, "finished", (values[t.number],)) for t in trials if t.number in values]
    if len(known) < LEAST_FOR_IMPORTANCE or len({trial.values for trial in known}) < 2:
        return None
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna_study(study.space, known, study.goals[:1], study.seed)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.seed)
        shares = {name: float(share) for name, share in optuna.importance.get_param_importances(found, evaluator=evaluator).items()}
    if not shares:
        return None
    figure, axes = _figure(6.4, 0.5 + 0.34 * len(shares))
    names = list(shares)[::-1]
    axes.barh([_short(name) for name in names], [shares[name] for name in names], color="#2471a3")
    axes.set_xlabel("share of the variance (fANOVA)")
    axes.tick_params(labelsize=8)
    return svg(figure), shares


def pareto(study: StudyConfig, trials: Sequence[TrialRecord]) -> Html | None:
    """The first two objectives against each other, with the Pareto front; speed is the second one if there is only one."""
    goals = study.goals if len(study.goals) > 1 else [study.goals[0], Objective("images_per_s", "max")]
    there = [trial for trial in trials if trial.values(goals)]
    if len(there) < 2:
        return None
    first, second = goals[:2]
    figure, axes = _figure(6, 4)
    for trial in there:
        x, y = trial.value(second.metric), trial.value(first.metric)
        assert x is not None
        assert y is not None
        axes.scatter(x, y, color=_COLORS[trial.state], s=30)
        axes.annotate(str(trial.number), (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
    front = sorted(pareto_front(there, goals), key=lambda trial: trial.value(second.metric) or 0.0)
    axes.plot(
        [t.value(second.metric) or 0.0 for t in front],
        [t.value(first.metric) or 0.0 for t in front],
        color="black",
        linewidth=1,
        linestyle="--",
        marker="o",
        markersize=9,
        markerfacecolor="none",
        label="front of the finished trials",
    )
    axes.legend(fontsize=7, frameon=False)
    axes.set_xlabel(second.metric)
    axes.set_ylabel(first.metric)
    return svg(figure)


def _middle(trial: TrialRecord, name: str) -> float | None:
    low, width = trial.point.get(f"{name}.low"), trial.point.get(f"{name}.width")
    return low + width / 2 if isinstance(low, int | float) and isinstance(width, int | float) else None


def _positions(dimension: Dimension, trials: Sequence[TrialRecord]) -> tuple[list[float], list[str] | None]:
    if dimension.choices is None:
        return [float(trial.point[dimension.name] or 0.0) for trial in trials], None
    return [float(dimension.choices.index(trial.point[dimension.name])) for trial in trials], [
        _word(choice) for choice in dimension.choices
    ]


def _height(dimension: Dimension, trial: TrialRecord) -> float:
    """The height in [0, 1] at which the trial crosses the dimension's axis; NaN if it lacks the dimension."""
    value = trial.point.get(dimension.name)
    if dimension.name not in trial.point:
        return math.nan
    if dimension.choices is not None:
        return dimension.choices.index(value) / max(1, len(dimension.choices) - 1)
    assert isinstance(value, int | float)
    low, high, at = (math.log(v) if dimension.is_log else v for v in (dimension.low, dimension.high, value))
    return (at - low) / (high - low) if high > low else 0.5


def _short(name: str) -> str:
    return one_line(".".join(name.split(".")[-2:]))


def _word(choice: object) -> str:
    text = one_line(str(choice))
    return text if len(text) <= 18 else text[:17] + "…"


def _norm(values: np.ndarray) -> Normalize:
    low, high = float(values.min()), float(values.max())
    return Normalize(low, high if high > low else low + 1e-9)


def _is_number(value: float | None) -> bool:
    return as_number(value) is not None


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
