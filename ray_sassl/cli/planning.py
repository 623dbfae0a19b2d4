"""What `ray-sassl cluster plan` does and prints."""

from __future__ import annotations

import math
import re

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ray_sassl.cli.pretraining import load_config
from ray_sassl.cluster.counts import write_counts
from ray_sassl.cluster.curve import curve_picture
from ray_sassl.cluster.plan import Prediction, Prices, Target, curve, num_stylizers, read_measured, read_prices, workload_of
from ray_sassl.cluster.plan import plan as make_plan
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.stream import layout_of
from ray_sassl.orchestrate.runtime.definitions import read_definition
from ray_sassl.plugins import UsageError
from ray_sassl.runs.process import build_method

_HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}


def target(images_per_s: float | None, deadline: str | None, usd: float | None) -> Target:
    """What is wanted.

    Raises:
        UsageError: more than one thing is, or the deadline is no time.
    """
    given = {"--target-images-per-s": images_per_s, "--deadline": deadline, "--budget": usd}
    wanted = [name for name, value in given.items() if value is not None]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} are given; a plan has one target")
    return Target(images_per_s, hours(deadline) if deadline is not None else None, usd)


def hours(text: str) -> float:
    """Of `90m`, `24h` or `3d`.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no length of time; write it as 90m, 24h or 3d")
    return float(match[1]) * _HOURS[match[2]]


def plan(
    console: Console,
    experiment: str,
    overrides: list[str],
    *,
    measured: list[str],
    images: int | None,
    prices: str | None,
    target: Target,
    headroom: float,
    out: str,
    write: list[str],
) -> None:
    """Plan, print, draw, and write the numbers where asked to."""
    if not measured:
        raise UsageError("a plan follows from measurements; give their file with --measured")
    config = load_config(experiment, overrides)
    found = read_measured({path: read_definition(path) for path in measured}, num_images=images, num_parameters=_num_parameters(config))
    kinds = read_prices(read_definition(prices), prices) if prices is not None else Prices()
    workload = workload_of(config, found, has_pool=layout_of(config) == "pool")
    chosen = make_plan(workload, found, kinds, target, trainers=max(1, config.scaling.num_workers), headroom=headroom)
    _print(console, chosen, kinds, "a pool of actors" if workload.has_pool else "the tasks that decode")
    storage.write_bytes(out, curve_picture(list(curve(workload, found, kinds, headroom=headroom)), chosen, config.name))
    console.print(f"Curve: {out}", soft_wrap=True)
    counts = {"decode": chosen.counts.decode, "stylize": chosen.counts.stylize, "train": chosen.counts.train}
    written = {path: write_counts(read_definition(path), path, counts) for path in write}
    for path, text in written.items():
        storage.write_text(path, text)
        console.print(f"Numbers of nodes: {path}", soft_wrap=True)
    size = num_stylizers(workload, kinds, chosen.counts)
    pool = f" stream.pool.min={size} stream.pool.initial={size} stream.pool.max={size} stream.pool.num_gpus={workload.actor_gpus:g}"
    settings = f"scaling.num_workers={chosen.counts.trainers} scaling.use_gpu=true{pool if workload.has_pool else ''}"
    console.print(f"Run it with: {settings}", soft_wrap=True, highlight=False)
    groups = f"scaling.node_group=train{' stream.pool.node_group=stylize' if workload.has_pool else ''}"
    console.print(f"and, where nodes are labeled as in cluster/: {groups}", soft_wrap=True, highlight=False)


def _num_parameters(config: ExperimentConfig) -> int:
    return sum(parameter.numel() for parameter in build_method(config).parameters() if parameter.requires_grad)


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
    length = f"{chosen.hours:,.1f} hours" if math.isfinite(chosen.hours) else "for ever"
    console.print(f"{chosen.images_per_s:,.0f} images/s on {chosen.counts.trainers} GPUs that train, {length}, {usd}", highlight=False)
    console.print(f"The bottleneck is {chosen.bottleneck}; styles are painted by {stylizes}.", highlight=False)


def _machine(prices: Prices, group: str) -> str:
    kind = getattr(prices, group)
    return f"{kind.cpus} CPUs" + (f", {kind.gpus} GPUs" if kind.gpus else "")
