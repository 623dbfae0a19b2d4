"""`ray-sassl cluster`: check cluster definitions, and say how large a cluster has to be."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(no_args_is_help=True, help="Check cluster definitions; plan how many nodes keep the trainer busy.")


@app.command(epilog="Example: ray-sassl cluster check cluster/aws.yaml cluster/kuberay/base/raycluster.yaml --crds crds/")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="For `ray up`, or Kubernetes manifests.")],
    crds: Annotated[
        str | None, typer.Option(help="Folder of KubeRay's CRDs; with it every field of a RayCluster or RayJob is checked.")
    ] = None,
) -> None:
    """Find what is wrong with cluster definitions before a cloud does.

    Exits with 1 where anything is; notes alone do not count.
    """
    from ray_sassl.orchestrate.definitions import check_files

    console = Console()
    has_problems = False
    for path, findings in check_files(files, crds).items():
        problems = [finding for finding in findings if not finding.is_note]
        has_problems = has_problems or bool(problems)
        console.print(f"{path}: {f'{len(problems)} problems' if problems else 'good'}", soft_wrap=True, highlight=False)
        for finding in findings:
            kind = "[yellow]note[/] " if finding.is_note else "[red]problem[/] "
            where = f"{finding.where}: " if finding.where else ""
            console.print(f"  {kind}{escape(where + finding.text)}", soft_wrap=True, highlight=False)
    if has_problems:
        raise typer.Exit(1)
