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
from ray_sassl.cli import ablation, cluster, data, evaluation, jobs, pretraining, reporting, search, stylize, weights
from ray_sassl.cli import export as exporting
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
app.add_typer(pretraining.app)
app.add_typer(evaluation.app)
app.add_typer(exporting.app)
app.add_typer(reporting.app)


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


@app.command()
def version() -> None:
    """Print the version."""
    write(f"{ray_sassl.__version__}\n")


_OF_THE_PLACE = frozenset((
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.EFBIG, errno.EBUSY,
    errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOLCK,
))  # fmt: skip
"""Errors that say what is wrong with a folder or a disk, and not with us."""


_NO_HOME = "Could not determine home directory."
"""What `pathlib` says; Ray asks it when it is imported to train."""


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
        if str(error) == _NO_HOME:
            errors.print(
                Text.assemble(("Error:", "bold red"), " this user has no home folder, and Ray asks for one; set HOME"), soft_wrap=True
            )
            sys.exit(2)
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
