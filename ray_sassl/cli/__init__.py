"""`ray-sassl`: one verb per job. Each parses, calls one function and prints.

What a verb needs beyond parsing is imported when it runs: torch, Ray and pyarrow take seconds, and `--help` needs none of them.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from traceback import format_exception
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text
from typer.core import TyperGroup

import ray_sassl
from ray_sassl.cli import ablation, cluster, data, jobs, reporting, search, stylize, weights
from ray_sassl.cli import export as exporting
from ray_sassl.cli.data import Address, Backbone
from ray_sassl.process.console import open_console, write
from ray_sassl.process.ending import exits_by_signal, told
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import secret_in_uri

_HELP = """Pretrain image encoders without labels, on Ray.

SASSL (arXiv 2312.01187) stylizes one view of each image by style transfer, so that the encoder learns to look past colors and textures.

\b
See it work, in minutes, without data or a GPU:
  ray-sassl demo
Pretrain on your images, look at the run, use the encoder:
  ray-sassl pretrain photos/
  ray-sassl report runs/photos
  ray-sassl export runs/photos --format timm
"""

_START = """Pretrain image encoders without labels. Three commands to begin with:

  ray-sassl demo                 see it work, in minutes, without data
  ray-sassl pretrain photos/     an encoder from a folder of your images
  ray-sassl --help               everything else
"""

_CONTENTS = {
    "Start here": ("demo", "experiments"),
    "Pretrain": ("views", "pretrain", "search", "ablation", "report", "compare"),
    "Use an encoder": ("evaluate", "detect", "embed", "export"),
    "Images and styles": ("data", "stylize", "weights"),
    "Clusters": ("job", "cluster"),
    "About": ("version",),
}
"""The verbs in the order in which users need them."""


class _Contents(TyperGroup):
    """Shows the verbs in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        listed = [verb for verbs in _CONTENTS.values() for verb in verbs]
        rest = {"More": tuple(verb for verb in self.commands if verb not in listed)}
        column = max(map(len, self.commands))
        for title, verbs in (_CONTENTS | rest).items():
            shown = [
                (verb, self.commands[verb].get_short_help_str(formatter.width - column - 6)) for verb in verbs if verb in self.commands
            ]
            if shown:
                with formatter.section(title):
                    formatter.write_dl([(verb.ljust(column), text) for verb, text in shown])


app = typer.Typer(
    name="ray-sassl",
    cls=_Contents,
    help=_HELP,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(search.app, name="search")
app.add_typer(ablation.app, name="ablation")
app.add_typer(data.app, name="data")
app.add_typer(cluster.app, name="cluster")
app.add_typer(jobs.app, name="job")
app.add_typer(stylize.app, name="stylize")
app.add_typer(weights.app, name="weights")
app.add_typer(exporting.app)
app.add_typer(reporting.app)

Experiment = Annotated[str, typer.Argument(metavar="EXPERIMENT_OR_FILE", help="An experiment's name, a YAML file, or a run directory.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the config, such as train.epochs=10.")]
EncoderName = Annotated[
    str,
    typer.Argument(
        metavar="ENCODER",
        help="A run directory (its newest checkpoint), a checkpoint, an export, a file of weights, timm:NAME, torchvision:NAME.",
    ),
]
Out = Annotated[
    str | None, typer.Option(help="Folder for the results. [default: evaluation/step-NUMBER of a run, evaluations/NAME for other encoders]")
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        write(f"{ray_sassl.__version__}\n")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        write(_START)


@app.command(epilog="Example: ray-sassl demo --run-dir runs/my-demo")
def demo(
    run_dir: Annotated[str | None, typer.Option(help="Where the two runs go. [default: runs/demo-DATE-TIME]")] = None,
    address: Address = None,
) -> None:
    """Pretrain with and without style, and compare.

    Two short runs on the embedded data set: minutes on two cores, no network.
    """
    from ray_sassl.cli import pretraining

    raise typer.Exit(pretraining.demo(open_console(), run_dir, address))


@app.command(epilog="Example: ray-sassl experiments moco_cifar10_cpu > mine.yaml")
def experiments(name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None) -> None:
    """List named experiments, or print one as YAML."""
    from ray_sassl.cli import pretraining

    pretraining.experiments(open_console(), name)


@app.command(epilog="Examples: ray-sassl pretrain photos/ --minutes 30   |   ray-sassl pretrain moco_cifar10_cpu --run-dir runs/first")
def pretrain(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES_OR_EXPERIMENT",
            help="Images (a folder, a glob, shards, a URI), an experiment's name, a YAML file, or a run directory.",
        ),
    ],
    overrides: Overrides = None,
    run_dir: Annotated[str | None, typer.Option(help="A path or s3://, gs:// URI. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run directory.")] = False,
    resume_if_begun: Annotated[
        bool, typer.Option("--resume-if-begun", help="Continue the run in the run directory, or start it if there is none.")
    ] = False,
    data_moved: Annotated[
        bool, typer.Option("--data-moved", help="With --resume: the same data are elsewhere now (data.path), or were copied again.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Training time: the first steps are timed, and the number of epochs follows from their speed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the config (YAML), and for images how it was chosen; train nothing.")
    ] = False,
    strict: data.Strict = False,
    address: Address = None,
) -> None:
    """Pretrain an encoder.

    Images get a recipe that suits them and this machine, and a table explains it.
    Ctrl-C, SIGTERM and SIGHUP stop at the next step and save a checkpoint to resume from; a second one stops at once.
    """
    from ray_sassl.cli import pretraining

    how = "if begun" if resume_if_begun and not resume else resume
    options = {"resume": how, "data_moved": data_moved, "minutes": minutes, "dry_run": dry_run, "strict": strict, "address": address}
    code = pretraining.pretrain(open_console(), experiment, overrides or [], run_dir, **options)
    raise typer.Exit(code)


@app.command(
    epilog="Examples: ray-sassl views moco_cifar10_sassl sassl.alpha='[0.5, 1.0]' --out grid.png   |   ray-sassl views moco_cifar10_sassl "
    "--dose --against fda"
)
def views(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Where to write the picture (PNG).")] = "views.png",
    rows: Annotated[int, typer.Option(min=1, help="Images to show.")] = 8,
    dose: Annotated[bool, typer.Option("--dose", help="Measure how strong style, jitter, blur and the others are.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="STYLIZER", help="With --dose: this stylizer too, with the alpha and beta that change pixels as much."),
    ] = None,
    strict: data.Strict = False,
) -> None:
    """Draw what the network will see.

    Crops, stylized crops and final views of some images, as a PNG.
    """
    from ray_sassl.cli import pretraining

    pretraining.views(open_console(), experiment, overrides or [], out, rows, dose, against or [], strict=strict)


@app.command(
    epilog="Examples: ray-sassl evaluate runs/first knn linear linear.l2=grid --baselines   |   ray-sassl evaluate timm:resnet50 all"
)
def evaluate(
    run: EncoderName,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PROTOCOL... [PATH=VALUE]...",
            help="Protocols, or `all` for those whose images are available, and changes to their fields (k=20, knn.k=20) or to the run's "
            "config (evaluate.test.path=...). The message about an unknown name lists the known ones.",
        ),
    ],
    baselines: Annotated[bool, typer.Option("--baselines", help="Also score the untrained encoder and raw pixels.")] = False,
    backbone: Backbone = None,
    strict: data.Strict = False,
    out: Out = None,
    keep_features: Annotated[
        bool, typer.Option(help="Save features in evaluation/features of the run directory, and use those that were saved.")
    ] = True,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Number of actors. [default: on a cluster as many as fit; on one machine, this process does the work]"),
    ] = None,
    actor_cpus: Annotated[float, typer.Option(help="CPUs and threads per actor.")] = 1.0,
    actor_gpus: Annotated[float | None, typer.Option(help="GPUs per actor. [default: 1 if the cluster has GPUs]")] = None,
    address: Address = None,
) -> None:
    """Evaluate an encoder on labeled images, beside the one that its run has started from.

    Writes scores with confidence intervals, pictures and predictions. Features are computed once.
    """
    from ray_sassl.cli import evaluation

    code = evaluation.evaluate(
        open_console(),
        run,
        what,
        baselines=baselines,
        backbone=backbone,
        strict=strict,
        out=out,
        keep_features=keep_features,
        actors=actors,
        actor_cpus=actor_cpus,
        actor_gpus=actor_gpus,
        address=address,
    )
    raise typer.Exit(code)


@app.command(
    epilog="Examples: ray-sassl detect runs/first VOCdevkit   |   ray-sassl detect runs/first cells architecture=fpn steps=500 batch_size=4"
)
def detect(
    run: EncoderName,
    data_: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A folder with JPEGImages, Annotations and ImageSets/Main, or with VOC2007 and VOC2012 in it."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the settings, such as steps=500.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also fine-tune the untrained encoder.")] = False,
    backbone: Backbone = None,
    strict: data.Strict = False,
    out: Out = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of Ray workers; 0: train in this process. [default: one per GPU of a cluster or of several GPUs; else 0]"
        ),
    ] = None,
    worker_cpus: Annotated[float, typer.Option(help="CPUs and threads per worker.")] = 1.0,
    address: Address = None,
) -> None:
    """Evaluate an encoder by object detection.

    Trains Faster R-CNN with the encoder as its backbone on data in PASCAL VOC's form, and measures AP, AP50, AP75. The same command
    continues a run that was stopped.
    """
    from ray_sassl.cli import detection

    how = {"baselines": baselines, "backbone": backbone, "strict": strict, "out": out, "workers": workers, "worker_cpus": worker_cpus}
    detection.detect(open_console(), run, data_, overrides or [], **how, address=address)


@app.command()
def version() -> None:
    """Print the version."""
    write(f"{ray_sassl.__version__}\n")


_OF_THE_PLACE = frozenset((
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY, errno.EMFILE, errno.ESTALE, errno.EIO,
))  # fmt: skip
"""Errors that say what is wrong with a folder or a disk, and not with us."""


def main() -> None:
    """The entry point. An error that the user can fix is shown without a traceback."""
    errors = open_console(stderr=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors, show_path=False)])
    sys.excepthook = _show_traceback
    with exits_by_signal():
        _run(errors)


def _run(errors: Console) -> None:
    try:
        _check_current_folder()
        _refuse_secrets(sys.argv[1:])
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        errors.print(Text.assemble(("Error:", "bold red"), f" {told(error)}"), soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        place = "" if error.filename is None or str(error.filename) in str(error) else f": {error.filename}"
        errors.print(Text.assemble(("Error:", "bold red"), f" {error}{place}"), soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if not hasattr(error, "format_message"):  # Click's errors of usage have it, and Typer has a Click of its own
            raise
        text = io.StringIO()
        error.show(text)  # pyright: ignore[reportAttributeAccessIssue]
        errors.print(text.getvalue().rstrip("\n"), soft_wrap=True)
        sys.exit(error.exit_code)  # pyright: ignore[reportAttributeAccessIssue]


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder is no longer there; change to another one") from None


def _show_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show an unexpected error as Python does, without control sequences of terminals."""
    open_console(stderr=True).print("".join(format_exception(kind, error, traceback)).rstrip("\n"), soft_wrap=True)


def _refuse_secrets(words: list[str]) -> None:
    """Check all words first: some would be written to a record before they are parsed."""
    for word in words:
        if objection := secret_in_uri(word):
            raise UsageError(objection)
