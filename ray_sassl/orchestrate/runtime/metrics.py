"""A run's metrics for Prometheus, by `ray.util.metrics`: each process sets its own metrics, and Ray's agents export them.

Setting a metric takes microseconds and does not block. On the endpoints the names begin with `ray_`, and counters end with `_total`;
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
from ray_sassl.process.stages import RANK_STAGES, STREAM_STAGES

_LOOK_EVERY_S = 10.0


@dataclass(frozen=True)
class Metric:
    """An exported metric.

    Attributes:
        name: Its name in Ray.
        kind: A counter only grows; images per second are its rate.
        about: Its description.
        labels: The names of its labels.
    """

    name: str
    kind: Literal["gauge", "counter"]
    about: str
    labels: tuple[str, ...] = ("run",)

    @property
    def exported_name(self) -> str:
        """The name on the endpoint."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


IMAGES = Metric("sassl_images", "counter", "Images that a stage (decode, stylize, train) has finished.", ("run", "stage"))
QUEUE = Metric("sassl_stylizer_queue_blocks", "gauge", "Blocks of images that are cropped and wait for a stylizer.")
STYLIZERS = Metric("sassl_stylizers", "gauge", "Stylizers by state (running, pending, restarting).", ("run", "state"))
BAD_ROWS = Metric("sassl_quarantined_rows", "gauge", "Rows that cannot be used.")
COST = Metric("sassl_usd_per_million_images", "gauge", "Cost of the nodes that are up while a million images are trained on.")
_TRAINING = {
    "step": Metric("sassl_step", "gauge", "Optimizer updates done."),
    "epoch": Metric("sassl_epoch", "gauge", "Passes over the data done."),
    "loss": Metric("sassl_loss", "gauge", "Loss, mean over the workers."),
    "chance_loss": Metric("sassl_chance_loss", "gauge", "The loss of a network that cannot distinguish images."),
    "learning_rate": Metric("sassl_learning_rate", "gauge", "Learning rate of the last step."),
    "embedding_std": Metric("sassl_embedding_std", "gauge", "Spread of the embeddings; near 0 after a collapse."),
    "effective_rank": Metric("sassl_effective_rank", "gauge", "Dimensions that the embeddings fill; few after a collapse."),
    "data_wait": Metric("sassl_data_wait_share", "gauge", "Share of the time in which the first worker waited for data."),
    "knn_top1": Metric("sassl_knn_top1", "gauge", "kNN top-1 on validation images, if labeled images are given."),
}
"""The loop's metrics, by their names in its reports."""
_BY_STAGE = {
    "share": Metric(
        "sassl_stage_share", "gauge", "Share of the last epoch's time of a training stage, mean over the workers.", ("run", "stage")
    ),
    "busy": Metric("sassl_stage_processes", "gauge", "Processes of the stream that were in a stage in the last epoch.", ("run", "stage")),
    "rate": Metric("sassl_stage_images_per_s", "gauge", "Images a second of one process in a stage of the stream.", ("run", "stage")),
}
"""The metrics of stages, by the first word of their names in the loop's reports; the second is the stage."""
ALL = (IMAGES, QUEUE, STYLIZERS, BAD_ROWS, COST, *_TRAINING.values(), *_BY_STAGE.values())


def count_images(run: str, stage: str, number: int) -> None:
    """Count images that have left the stage."""
    if number:
        _instrument(IMAGES).inc(number, {"run": run, "stage": stage})


def set_queue(run: str, blocks: int, stylizers: Mapping[str, int]) -> None:
    """Set the number of blocks that wait for a stylizer, and of stylizers by state."""
    _instrument(QUEUE).set(blocks, {"run": run})
    for state, number in stylizers.items():
        _instrument(STYLIZERS).set(number, {"run": run, "state": state})


def set_bad_rows(run: str, number: int) -> None:
    """Set the number of rows in quarantine."""
    _instrument(BAD_ROWS).set(number, {"run": run})


class TrainingMetrics:
    """Exports the loop's reports as metrics; for rank 0.

    Args:
        run: The run's name.
        global_batch: Images per step.
        step: The step that the loop continues from.
    """

    def __init__(self, run: str, global_batch: int, step: float) -> None:
        self._run, self._global_batch, self._step = run, global_batch, step

    def __call__(self, report: Mapping[str, float]) -> None:
        for name, metric in _TRAINING.items():
            if name in report:
                _instrument(metric).set(float(report[name]), {"run": self._run})
        for name, value in report.items():
            what, _, stage = name.partition("_")
            if what in _BY_STAGE and stage in (*RANK_STAGES, *STREAM_STAGES):
                _instrument(_BY_STAGE[what]).set(float(value), {"run": self._run, "stage": stage})
        count_images(self._run, "train", round((report["step"] - self._step) * self._global_batch))
        self._step = report["step"]


class CostMeter:
    """Exports the cost of a million images, from the nodes that are up and the prices of each group's machines.

    Args:
        run: The run's name.
        prices: USD per hour by group; if a node's group or its price is unknown, no cost is exported.
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
    """The total price of nodes of these groups; None if one of the prices is unknown."""
    known = [prices[group] for group in groups if group in prices]
    return sum(known) if len(known) == len(groups) else None


@cache
def _instrument(metric: Metric) -> Any:
    """Ray's object for the metric, made once per process."""
    return {"gauge": Gauge, "counter": Counter}[metric.kind](metric.name, metric.about, metric.labels)
