"""Text for people: whatever was read from elsewhere is shown as it is, and neither the terminal nor rich takes a part of it for a command.

Names of files, classes and metrics, configs and messages may hold anything. `printable` shows what a terminal would obey (escape sequences,
control characters, marks that reverse the direction of text) as `\\x1b` and the like. Every console of the package comes from
`open_console`, which passes all text through it and reads no markup, so a verb cannot forget it; colors of our own are
`Text.assemble(("Note:", "yellow"), ...)`.
"""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ray_sassl.process.secrets import redacted

_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need, and that change nothing around them."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_MARKS = re.compile(r"[\\`*<>|\[\]]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str, keep: str = "\n") -> str:
    """The text with what must not reach a terminal or a page as an escape: `\\x1b`, `\\u202e`; a byte that is not UTF-8 as `\\xe9`.

    Args:
        keep: Control characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _is_obeyed(char) else _escaped(char) for char in text)


def one_line(text: str) -> str:
    """The same, with the ends of lines escaped too."""
    return printable(text, keep="")


def markdown(text: str) -> str:
    """The text for Markdown, as it is: in one line, that does not end a table's cell, begin HTML, a link, code or emphasis."""
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def markdown_code(text: str, *, in_table: bool = False) -> str:
    """The text as code of Markdown, in one line."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    text = one_line(text).replace("|", "\\|") if in_table else one_line(text)
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def csv_cell(text: str) -> str:
    """The text for a cell of CSV, behind a `'` where a spreadsheet would take it for a formula. Numbers stay as they are."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text) else text


def _is_obeyed(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS


def _escaped(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class _PrintableConsole(Console):
    """A console that makes text printable, also for its stream's encoding.

    Strings are made so, and secrets in URIs hidden, before they are laid out, so that tables keep their form; whatever else a renderable
    holds, where it comes out.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self._printable(redacted(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and (shown := redacted(renderable.plain)) != renderable.plain:
            renderable = Text(shown, style=renderable.style, end=renderable.end)
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._printable(segment.text), segment.style)

    def _printable(self, text: str) -> str:
        return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


def open_console(*, stderr: bool = False) -> Console:
    """A console for standard output or standard error, which prints characters that the stream's encoding does not have as escapes."""
    _never_fail(sys.stderr if stderr else sys.stdout)
    return _PrintableConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


def write(text: str) -> None:
    """Write foreign text to standard output as it is, without wrapping: documents, and the output of jobs, whose colors are left out."""
    _never_fail(sys.stdout)
    sys.stdout.write(printable(_COLORS.sub("", redacted(text)).replace("\r\n", "\n"), keep="\n\t"))
    sys.stdout.flush()


def _never_fail(stream: object) -> None:
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")
