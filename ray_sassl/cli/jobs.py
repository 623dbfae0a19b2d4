"""`ray-sassl job`: run other commands as jobs on a cluster."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

import ray_sassl
from ray_sassl.process.console import open_console, write
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import HIDDEN

if TYPE_CHECKING:
    from ray_sassl.api.jobs import SubmitResult
    from ray_sassl.orchestrate.jobs.submission import Job

_HELP = """Run commands on a cluster; this machine may be switched off meanwhile.

\b
  ray-sassl job submit --name first -- pretrain moco_imagenet_sassl data.path=s3://... evaluate.train.path=s3://...
      evaluate.test.path=s3://... --run-dir s3://...
  ray-sassl job logs first --follow
  ray-sassl job stop first          saves a checkpoint; submitting the same name again continues from it
"""
_STYLE = {"succeeded": "green", "failed": "red", "stopped": "yellow", "running": "cyan", "pending": "blue"}

_SHOWN = 20
_LISTED = 500

app = typer.Typer(no_args_is_help=True, help=_HELP)

Address = Annotated[
    str | None,
    typer.Option(help="URL of the cluster's job API. [default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265]"),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, which means its newest try, or the id of a try.")]


@app.command(
    "submit",
    epilog="Example: ray-sassl job submit --name first -- pretrain moco_imagenet_sassl data.path='s3://bucket/train-*.tar' "
    "evaluate.train.path='s3://bucket/train-*.tar' evaluate.test.path='s3://bucket/val-*.tar' --run-dir s3://bucket/runs/first",
)
def submit_command(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND...", help="A command without ray-sassl: pretrain, search, evaluate, stylize dataset or data convert."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The same name again continues the job. [default: from the command and where it writes]")
    ] = None,
    working_dir: Annotated[str, typer.Option(help="Folder to send with the job, without what Git ignores.")] = ".",
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the job's environment; no secrets.")] = None,
    env_from_secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A secret for the job's environment, which does not stand in its record: a variable of this shell (WANDB_API_KEY), or all "
            "keys of a Kubernetes Secret (secret/NAME, secret/NAMESPACE/NAME).",
        ),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="The definition (launcher or KubeRay) of a cluster that grows, for its largest size.")
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(min=0, help="Largest size of what is sent.")] = 100.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be sent; send nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Print the job's output until it ends, and exit with its code.")] = False,
    address: Address = None,
) -> None:
    """Check that a command can run on a cluster, and send it.

    The experiment, its data and the resources of the cluster are checked before anything is sent. The nodes need our dependencies in the
    versions of this machine; our own code is sent with the job.
    """
    from ray_sassl.api.jobs import exit_code

    console = open_console()
    result = ray_sassl.submit_job(
        command,
        name=name,
        working_dir=working_dir,
        env=dict(_variable(text) for text in env or []),
        env_from_secret=env_from_secret or [],
        cluster=cluster,
        max_upload_mb=max_upload_mb,
        address=address,
        dry_run=dry_run,
    )
    for note in result.notes:
        console.print(Text.assemble(("Note:", "yellow"), f" {note}"), soft_wrap=True)
    if result.left_here:
        console.print(f"not sent, because their names are those of secrets: {', '.join(result.left_here)}", soft_wrap=True)
    job = result.job
    if job is None:
        _show_request(console, result)
        return
    again = "" if job.id == job.name else f" (try {job.id.rpartition('-')[2]}; it continues the last one)"
    console.print(Text.assemble((job.name, "bold"), f"{again}: sent with {result.num_files:,} files, {decimal(result.num_bytes)}"))
    if wait:
        ended = result.follow(write)
        _show(console, ended)
        raise typer.Exit(exit_code(ended))
    where = f" --address {address}" if address else ""
    console.print(f"Follow it with: ray-sassl job logs {job.name} --follow{where}", soft_wrap=True)


@app.command("list", epilog="Example: ray-sassl job list --address http://127.0.0.1:8265")
def list_command(address: Address = None) -> None:
    """List the cluster's jobs, the newest first."""
    found = ray_sassl.list_jobs(address)
    console, where = open_console(), address or "the cluster"
    if not found:
        console.print(f"no jobs at {where}")
        return
    table = Table("job", "status", "started", "took", "command", title=f"Jobs at {where}", title_justify="left")
    for job in found[:_LISTED]:
        table.add_row(job.id, Text(job.status, _STYLE[job.status]), _clock(job.started), _length(job), job.command)
    console.print(table)
    if len(found) > _LISTED:
        console.print(f"and {len(found) - _LISTED:,} older ones")


@app.command("status", epilog="Example: ray-sassl job status first")
def status_command(job: JobName, address: Address = None) -> None:
    """Show the state of a job."""
    _show(open_console(), ray_sassl.job_status(job, address))


@app.command("logs", epilog="Example: ray-sassl job logs first --follow")
def logs_command(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print until the job ends; Ctrl-C does not stop the job.")] = False,
    address: Address = None,
) -> None:
    """Print a job's output."""
    text, found = ray_sassl.job_logs(job, follow=write if follow else None, address=address)
    if follow:
        _show(open_console(), found)
    else:
        write(text)


@app.command("stop", epilog="Example: ray-sassl job stop first")
def stop_command(
    job: JobName,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it has stopped.")] = False,
    address: Address = None,
) -> None:
    """Stop a job as by Ctrl-C: a pretraining or a search saves checkpoints first.

    A job that has not stopped after five minutes is killed.
    """
    console = open_console()
    was_running, found = ray_sassl.stop_job(job, wait=not no_wait, address=address)
    if not was_running:
        console.print(f"{found.id} had ended already: {found.status}")
        return
    console.print(f"{found.id} was asked to stop")
    if not no_wait:
        _show(console, found)


@app.command("wait", epilog="Example: ray-sassl job wait first && ray-sassl job submit -- evaluate s3://bucket/runs/first linear")
def wait_command(job: JobName, address: Address = None) -> None:
    """Wait until a job ends, and exit with its code.

    The exit code is the command's own; 130 for a job that was stopped, and 1 for one that failed before it began.
    """
    from ray_sassl.api.jobs import exit_code

    ended = ray_sassl.wait_for_job(job, address)
    _show(open_console(), ended)
    raise typer.Exit(exit_code(ended))


def _show_request(console: Console, result: SubmitResult) -> None:
    request = result.request
    table = Table(show_header=False, title="Nothing was sent; this would be", title_justify="left")
    table.add_row("job", request.id)
    table.add_row("command", request.entrypoint)
    table.add_row("in the record", "\n".join(f"{name}: {value}" for name, value in request.metadata.items()))
    table.add_row("environment", "\n".join(f"{name}={value}" for name, value in request.env.items()))
    if names := request.metadata.get("secrets"):
        table.add_row("secrets", "\n".join(f"{name}={HIDDEN}" for name in names.split(",")))
    shown = [*request.files[:_SHOWN], *([f"... and {len(request.files) - _SHOWN:,} more"] if len(request.files) > _SHOWN else [])]
    table.add_row("files", "\n".join([f"{result.num_files:,}, {decimal(result.num_bytes)}, and ray_sassl itself", *shown]))
    console.print(table)


def _show(console: Console, job: Job) -> None:
    table = Table(show_header=False)
    table.add_row("job", job.id if job.id == job.name else f"{job.id}, a try of {job.name}")
    table.add_row("status", Text(job.status, _STYLE[job.status]))
    table.add_row("command", job.command)
    if job.target:
        table.add_row("writes to", job.target)
    table.add_row("started", _clock(job.started))
    if job.has_ended:
        table.add_row("took", _length(job))
    if job.exit_code is not None:
        table.add_row("exit code", str(job.exit_code))
    if job.status == "failed" and job.message:
        table.add_row("Ray says", job.message.strip())
    console.print(table)


def _clock(time_s: float | None) -> str:
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M:%S}" if time_s else "not yet"


def _length(job: Job) -> str:
    if job.started is None:
        return ""
    return str(timedelta(seconds=round((job.ended or datetime.now().timestamp()) - job.started)))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--env {text!r} is not of the form NAME=VALUE")
    return name, value
