"""What `ray-sassl cluster plan` does and prints."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

import ray_sassl
from ray_sassl.cli.durations import seconds
from ray_sassl.cluster.plan import Prediction, Prices, Target
from ray_sassl.process.errors import UsageError


def target(images_per_s: float | None, deadline: str | None, usd: float | None) -> Target:
    """The target of a plan.

    Raises:
        UsageError: more than one target is given, or the deadline is not a length of time.
    """
    given = {"--target-images-per-s": images_per_s, "--deadline": deadline, "--budget": usd}
    wanted = [name for name, value in given.items() if value is not None]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} are given; a plan has one target")
    return Target(images_per_s, seconds(deadline, needs_unit=True) / 3600 if deadline is not None else None, usd)


def plan(console: Console, experiment: str, measured: list[str], **options: Any) -> None:
    """Plan a cluster, print and draw the plan, and write the numbers of nodes where that is asked for.

    Args:
        options: Further arguments of `ray_sassl.plan_cluster`.
    """
    found = ray_sassl.plan_cluster(experiment, measured, **options)
    _print(console, found.prediction, found.prices, "a pool of actors" if found.has_pool else "the tasks that decode")
    console.print(f"Curve: {found.curve}", soft_wrap=True)
    for path in found.written:
        console.print(f"Numbers of nodes: {path}", soft_wrap=True)
    console.print(f"Run it with: {' '.join(found.settings)}", soft_wrap=True)
    console.print(f"and, if nodes are labeled as in cluster/: {' '.join(found.groups)}", soft_wrap=True)


def _print(console: Console, chosen: Prediction, prices: Prices, stylizes: str) -> None:
    table = Table(
        "group", "nodes", "machine", "images/s it could do", "receives", "sends", "of it from storage", title="Plan", title_justify="left"
    )
    table.add_row("head", "1", _machine(prices, "head"), "", "", "", "")
    for group in ("decode", "stylize", "train"):
        traffic = chosen.traffic.get(group)
        flow = (
            [f"{decimal(round(amount))}/s a node" for amount in (traffic.received, traffic.sent, traffic.from_storage)]
            if traffic
            else ["", "", ""]
        )
        capacity = chosen.capacities.get(group)
        table.add_row(group, str(getattr(chosen.counts, group)), _machine(prices, group), f"{capacity:,.0f}" if capacity else "", *flow)
    console.print(table)
    usd = "unknown (give --prices)" if chosen.usd is None else f"{chosen.usd:,.0f} USD"
    length = f"{chosen.hours:,.1f} hours" if math.isfinite(chosen.hours) else "forever"
    console.print(f"{chosen.images_per_s:,.0f} images/s on {chosen.counts.trainers} GPUs that train, {length}, {usd}")
    console.print(f"The bottleneck is {chosen.bottleneck}; images are stylized by {stylizes}.")


def _machine(prices: Prices, group: str) -> str:
    kind = getattr(prices, group)
    return f"{kind.cpus} CPUs" + (f", {kind.gpus} GPUs" if kind.gpus else "")
