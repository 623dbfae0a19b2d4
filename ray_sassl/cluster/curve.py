"""The figure of a plan: speed against cost."""

from __future__ import annotations

import io
from collections.abc import Sequence

from ray_sassl.cluster.plan import Prediction


def curve_picture(predictions: Sequence[Prediction], chosen: Prediction, title: str) -> bytes:
    """A PNG: images per second over the cost of the whole run, or over GPUs if prices are unknown; the chosen plan is marked.

    Args:
        predictions: Predictions in the order of their GPUs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib takes half a second to import
    from matplotlib.figure import Figure

    has_prices = all(prediction.usd is not None for prediction in [*predictions, chosen])

    def x(prediction: Prediction) -> float:
        return prediction.usd if has_prices and prediction.usd is not None else prediction.counts.trainers

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([x(one) for one in predictions], [one.images_per_s for one in predictions], ".-", color="#31688e", linewidth=1)
    for one in predictions:
        axes.annotate(str(one.counts.trainers), (x(one), one.images_per_s), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.plot(
        [x(chosen)], [chosen.images_per_s], "o", color="#d1495b", label=f"chosen: {chosen.counts.trainers} GPUs, {chosen.hours:,.1f} hours"
    )
    axes.set_xlabel("cost of the run, USD" if has_prices else "training GPUs")
    axes.set_ylabel("images per second")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{title} (numbers: training GPUs)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
