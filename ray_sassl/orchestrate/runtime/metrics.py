"""What a run shows to Prometheus while it goes on, by `ray.util.metrics`: each process sets its own part, and Ray's agents export it.

Setting a figure takes microseconds and waits for nobody. On the endpoints the names begin with `ray_`, and counters end with `_total`;
`cluster/grafana.json` draws them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
from ray.util.metrics import Counter, Gauge

from ray_sassl.orchestrate.runtime.session import GROUP_LABEL

_LOOK_EVERY_S = 10.0


@dataclass(frozen=True)
class Metric:
    """A figure that is exported.

    Attributes:
        name: As it is handed to Ray.
        kind: A counter only grows; images a second are its rate.
        about: What it is.
        labels: What it is told apart by.
    """

    name: str
    kind: Literal["gauge", "counter"]
    about: str
    labels: tuple[str, ...] = ("run",)

    @property
    def exported_name(self) -> str:
        """On the endpoint."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


IMAGES = Metric("sassl_images", "counter", "Images that a stage (decode, stylize, train) has finished.", ("run", "stage"))
QUEUE = Metric("sassl_stylizer_queue_blocks", "gauge", "Blocks of images that are cropped and wait for a stylizer.")
STYLIZERS = Metric("sassl_stylizers", "gauge", "Stylizers by what they are (running, pending, restarting).", ("run", "state"))
BAD_ROWS = Metric("sassl_quarantined_rows", "gauge", "Rows that cannot be used.")
COST = Metric("sassl_usd_per_million_images", "gauge", "What the nodes that are up cost while a million images are trained on.")
_TRAINING = {
    "step": Metric("sassl_step", "gauge", "Optimizer updates done."),
    "epoch": Metric("sassl_epoch", "gauge", "Passes over the data done."),
    "loss": Metric("sassl_loss", "gauge", "Mean over the workers."),
    "chance_loss": Metric("sassl_chance_loss", "gauge", "The loss of a network that tells no two images apart."),
    "learning_rate": Metric("sassl_learning_rate", "gauge", "Of the last step."),
    "embedding_std": Metric("sassl_embedding_std", "gauge", "Spread of the embeddings; near 0 after a collapse."),
    "effective_rank": Metric("sassl_effective_rank", "gauge", "Dimensions that the embeddings fill; few after a collapse."),
    "data_wait": Metric("sassl_data_wait_share", "gauge", "Share of the time in which the first worker waited for data."),
    "knn_top1": Metric("sassl_knn_top1", "gauge", "Of the kNN on validation images, where labeled images are given."),
}
"""By the name in a report of the loop."""
ALL = (IMAGES, QUEUE, STYLIZERS, BAD_ROWS, COST, *_TRAINING.values())


def count_images(run: str, stage: str, number: int) -> None:
    """So many images have left the stage."""
    if number:
        _instrument(IMAGES).inc(number, {"run": run, "stage": stage})


def set_queue(run: str, blocks: int, stylizers: Mapping[str, int]) -> None:
    """How many blocks wait for a stylizer, and how many stylizers there are by their state."""
    _instrument(QUEUE).set(blocks, {"run": run})
    for state, number in stylizers.items():
        _instrument(STYLIZERS).set(number, {"run": run, "state": state})


def set_bad_rows(run: str, number: int) -> None:
    """How many rows are in quarantine."""
    _instrument(BAD_ROWS).set(number, {"run": run})


class TrainingMetrics:
    """The loop's reports as metrics; for rank 0.

    Args:
        run: The run's name.
        global_batch: Images of a step.
        step: From which the loop goes on.
    """

    def __init__(self, run: str, global_batch: int, step: float) -> None:
        self._run, self._global_batch, self._step = run, global_batch, step

    def __call__(self, report: Mapping[str, float]) -> None:
        for name, metric in _TRAINING.items():
            if name in report:
                _instrument(metric).set(float(report[name]), {"run": self._run})
        count_images(self._run, "train", round((report["step"] - self._step) * self._global_batch))
        self._step = report["step"]


class CostMeter:
    """The cost of a million images, from the nodes that are up and what each group's machines cost.

    Args:
        run: The run's name.
        prices: USD an hour by group; where a node's group or its price is not known, the cost is not, and is not exported.
    """

    def __init__(self, run: str, prices: Mapping[str, float]) -> None:
        self._run, self._prices = run, prices
        self._looked_at = float("-inf")
        self._usd_per_hour: float | None = None

    def __call__(self, images_per_s: float) -> None:
        now = time.monotonic()
        if now - self._looked_at > _LOOK_EVERY_S:
            groups = [node["Labels"].get(GROUP_LABEL, "") for node in ray.nodes() if node["Alive"]]
            self._usd_per_hour, self._looked_at = usd_per_hour(groups, self._prices), now
        if self._usd_per_hour is not None and images_per_s > 0:
            _instrument(COST).set(self._usd_per_hour / 3600 / images_per_s * 1e6, {"run": self._run})


def usd_per_hour(groups: list[str], prices: Mapping[str, float]) -> float | None:
    """What nodes of these groups cost together; None where the price of one of them is not known."""
    known = [prices[group] for group in groups if group in prices]
    return sum(known) if len(known) == len(groups) else None


@cache
def _instrument(metric: Metric) -> Any:
    """Ray's object for it, made once a process."""
    return {"gauge": Gauge, "counter": Counter}[metric.kind](metric.name, metric.about, metric.labels)
