"""`ray-sassl cluster`: check cluster definitions, and calculate how large a cluster must be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

import ray_sassl
from ray_sassl.cli.durations import seconds
from ray_sassl.cli.pretraining import Experiment, Overrides
from ray_sassl.process.console import open_console
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.cluster.plan import Prediction, Prices, Target

app = typer.Typer(no_args_is_help=True, help="Check cluster definitions; plan how many nodes keep the trainer busy.")


@app.command(epilog="Example: ray-sassl cluster check cluster/aws.yaml cluster/kuberay/base/raycluster.yaml --crds crds/")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Definitions for `ray up`, or Kubernetes manifests.")],
    crds: Annotated[
        str | None, typer.Option(help="Folder of CRDs (KubeRay's, and others'); with it every field of their kinds is checked.")
    ] = None,
    kuberay: Annotated[str | None, typer.Option(help="Version of your KubeRay; fields that it does not know yet are problems.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also list what was checked.")] = False,
) -> None:
    """Find what is wrong with cluster definitions before a cloud does.

    Exits with 1 if there are problems; notes are not problems.
    """
    console = open_console()
    has_problems = False
    for path, findings in ray_sassl.check_cluster(files, crds, kuberay).items():
        problems = [finding for finding in findings if not finding.is_note]
        has_problems = has_problems or bool(problems)
        console.print(f"{path}: {f'{len(problems)} problems' if problems else 'good'}", soft_wrap=True)
        for finding in findings:
            kind = ("note", "yellow") if finding.is_note else ("problem", "red")
            where = f"{finding.where}: " if finding.where else ""
            console.print(Text.assemble("  ", kind, f" {where}{finding.text}"), soft_wrap=True)
        if explain:
            from ray_sassl.cluster.check import rules_of
            from ray_sassl.orchestrate.runtime.definitions import read_definition

            for rule in rules_of(read_definition(path), path, has_schemas=crds is not None):
                console.print(f"  checked {rule}", soft_wrap=True, markup=False)
    if has_problems:
        raise typer.Exit(1)


@app.command(
    epilog="Example: ray-sassl cluster plan moco_imagenet_sassl stream.pool.num_gpus=0.25 --measured bench.json --prices "
    "cluster/prices.yaml "
    "--deadline 24h --write cluster/aws.yaml"
)
def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            help="JSON with decode_images_per_core_s, train_images_per_gpu_s, stylize_images_per_gpu_s; may be given several times."
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Number of images of the data set, if the measurements do not have it.")] = None,
    prices: Annotated[
        str | None, typer.Option(help="YAML with the machines of each group and their prices, as cluster/prices.yaml.")
    ] = None,
    target_images_per_s: Annotated[float | None, typer.Option(min=1, help="The least training speed.")] = None,
    deadline: Annotated[str | None, typer.Option(help="The longest time for the whole run: 90m, 24h, 3d.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="The most USD for the whole run; the plan is the fastest within it.")] = None,
    headroom: Annotated[
        float, typer.Option(min=0, max=2, help="Spare capacity of decoding and stylizing, as a share of what the trainers need.")
    ] = 0.15,
    out: Annotated[str, typer.Option(help="Where to write the curve of throughput over cost (PNG).")] = "cluster-plan.png",
    write: Annotated[list[str] | None, typer.Option(help="A launcher or KubeRay file to write the numbers of nodes into.")] = None,
) -> None:
    """Calculate how many nodes of each group keep the trainer busy, how fast it trains, and what it costs.

    Without a target, the plan is for scaling.num_workers GPUs. Measure the rates in short runs on one core and one GPU of the kind to rent.
    """
    console = open_console()
    found = ray_sassl.plan_cluster(
        experiment,
        measured or [],
        overrides=overrides,
        num_images=images,
        prices=prices,
        target=target(target_images_per_s, deadline, budget),
        headroom=headroom,
        out=out,
        write=write or [],
    )
    _print(console, found.prediction, found.prices, "a pool of actors" if found.has_pool else "the tasks that decode")
    console.print(f"Curve: {found.curve}", soft_wrap=True)
    for path in found.written:
        console.print(f"Numbers of nodes: {path}", soft_wrap=True)
    console.print(f"Run it with: {' '.join(found.settings)}", soft_wrap=True)
    console.print(f"and, if nodes are labeled as in cluster/: {' '.join(found.groups)}", soft_wrap=True)


def target(images_per_s: float | None, deadline: str | None, usd: float | None) -> Target:
    """The target of a plan.

    Raises:
        UsageError: more than one target is given, or the deadline is not a length of time.
    """
    from ray_sassl.cluster.plan import Target

    given = {"--target-images-per-s": images_per_s, "--deadline": deadline, "--budget": usd}
    wanted = [name for name, value in given.items() if value is not None]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} are given; a plan has one target")
    return Target(images_per_s, seconds(deadline, needs_unit=True) / 3600 if deadline is not None else None, usd)


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
