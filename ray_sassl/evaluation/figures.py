"""Plots of protocols' results, as PNG files: curves and maps (matplotlib without a display)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ray_sassl.process.console import one_line

MAX_COLORED_CLASSES = 20
_DPI = 110
_MOST_LETTERS = 80


def plain_texts(figure: Any) -> None:
    """See that names are drawn as they are: not as formulas where a `$` is in them, in one line, and not without end.

    Labels that matplotlib makes for ticks while it draws are left alone.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        given = one_line(text.get_text())
        text.set_text(given if len(given) <= _MOST_LETTERS else f"{given[: _MOST_LETTERS - 1]}…")
        if "$" in given:
            text.set_parse_math(False)


def draw(width: float, height: float, paint: Callable[[Any], None]) -> bytes:
    """A PNG of `width` x `height` inches with one pair of axes, which `paint` draws on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib takes half a second to import
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    paint(axes)
    plain_texts(figure)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", dpi=_DPI)
    return out.getvalue()


def curves(
    x: Sequence[float], lines: dict[str, Sequence[float]], x_title: str, y_title: str, *, is_log: bool = False, mark: float | None = None
) -> bytes:
    """Several lines over one axis, with a legend.

    Args:
        lines: Values by name, each as long as `x`; NaN leaves a gap.
        is_log: Whether x is drawn on a logarithmic scale.
        mark: An x to mark by a vertical line.
    """

    def paint(axes: Any) -> None:
        for name, values in lines.items():
            axes.plot(x, values, marker="o", markersize=3, linewidth=1.2, label=name)
        if is_log:
            axes.set_xscale("log")
        if mark is not None:
            axes.axvline(mark, color="0.6", linestyle="--", linewidth=1)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw(7.5 if len(lines) > 1 else 6, 4, paint)


def scatter(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], x_title: str, y_title: str) -> bytes:
    """A map of points (N, 2), colored by class; of more than 20 classes only the first 20 have colors, the others are gray."""

    def paint(axes: Any) -> None:
        from matplotlib import colormaps

        palette = colormaps["tab10" if len(np.unique(labels)) <= 10 else "tab20"]
        classes = np.unique(labels)
        for number, label in enumerate(classes):
            chosen = points[labels == label]
            is_colored = number < MAX_COLORED_CLASSES
            name = (class_names[label] if class_names else f"class {label}") if is_colored else None
            axes.scatter(*chosen.T, s=5, alpha=0.6, linewidths=0, color=palette(number) if is_colored else "0.8", label=name)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
        axes.legend(frameon=False, fontsize=8, markerscale=3, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw(8, 6, paint)
