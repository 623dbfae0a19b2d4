"""`ray-sassl cluster`: check cluster definitions, and calculate how large a cluster must be."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

import ray_sassl
from ray_sassl.process.console import open_console

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
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT_OR_FILE", help="An experiment's name, a YAML file, or a run directory.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the config.")] = None,
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
    from ray_sassl.cli import planning

    planning.plan(
        open_console(),
        experiment,
        measured or [],
        overrides=overrides or [],
        num_images=images,
        prices=prices,
        target=planning.target(target_images_per_s, deadline, budget),
        headroom=headroom,
        out=out,
        write=write or [],
    )
