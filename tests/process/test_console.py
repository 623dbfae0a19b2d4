"""Foreign text on a terminal: shown, never obeyed, and never too much for the terminal's encoding."""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

import ray_sassl
from ray_sassl.process.console import csv_cell, markdown, markdown_code, one_line, open_console, printable, write

HOSTILE = "[/x]\x1b]0;owned\x07\x9b31m\u202egpj.exe\udce9\x00猫é:warning:\r"
SHOWN = r"[/x]\x1b]0;owned\x07\x9b31m\u202egpj.exe\xe9\x00猫é:warning:\r"


in_encodings = pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])


def _stdout(encoding: str, monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    """Standard output in an encoding, strict as Python opens it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "300")
    return stream


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(stream.encoding)


def _in(encoding: str, text: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def test_what_a_terminal_would_obey_becomes_an_escape_and_the_rest_stays():
    assert printable(HOSTILE) == SHOWN
    assert printable("Zürich 猫 👩\u200d🔬 \u00a0 می\u200cخواهم\nplain") == "Zürich 猫 👩\u200d🔬 \u00a0 می\u200cخواهم\nplain"
    assert one_line("a\nb\tc\u2028d") == r"a\nb\tc\u2028d"
    assert printable(printable(HOSTILE)) == SHOWN


@in_encodings
def test_a_console_shows_foreign_text_in_lines_and_tables_and_bars(encoding: str, monkeypatch: pytest.MonkeyPatch):
    stdout = _stdout(encoding, monkeypatch)
    console = open_console()
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    shown = _in(stdout.encoding, SHOWN)
    for renderable in (HOSTILE, table):
        console.print(renderable, soft_wrap=True)
    assert _written(stdout).count(shown) == 4
    for renderable in (Text(HOSTILE), Text.assemble(("Note:", "yellow"), f" {HOSTILE}")):
        console.print(renderable, soft_wrap=True)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(HOSTILE, total=1)
    write(HOSTILE)
    text = _written(stdout)
    # rich itself leaves out bells and carriage returns of its texts
    assert text.count(shown.replace(r"\x07", "").replace(r"\r", "")) == 2
    assert text.endswith(shown)
    assert not set("\x1b\x07\x9b\u202e\x00\r") & set(text)


@in_encodings
def test_a_table_keeps_its_form_around_foreign_text(encoding: str, monkeypatch: pytest.MonkeyPatch):
    stdout = _stdout(encoding, monkeypatch)
    table = Table("name", "value", width=60)
    table.add_row("\x1b[2J猫" * 3, "1")
    open_console().print(table)
    lines = _written(stdout).splitlines()
    assert {cell_len(line) for line in lines} == {60}


@in_encodings
def test_colors_in_the_output_of_a_job_are_left_out(encoding: str, monkeypatch: pytest.MonkeyPatch):
    stdout = _stdout(encoding, monkeypatch)
    write("\x1b[36m(train pid=3)\x1b[0m loss\t3\r\nnext\n")
    assert _written(stdout) == "(train pid=3) loss\t3\nnext\n"


def test_markdown_shows_foreign_text_in_one_line_and_one_cell():
    assert markdown("a|b\n<script>`[x](y)*\x1b") == r"a\|b\n\<script\>\`\[x\](y)\*\x1b".replace("b\\n", "b\\\\n").replace(
        "\\x1b", "\\\\x1b"
    )
    assert markdown("mean_per_class") == "mean_per_class"
    assert markdown_code("runs/a") == "`runs/a`"
    assert markdown_code("a `b` ``c``|d") == "``` a `b` ``c``|d ```"
    assert markdown_code("a|b", in_table=True) == r"`a\|b`"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "－1+1", "-1+1", "+"])
def test_a_text_that_a_spreadsheet_would_compute_is_quoted(text: str):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-1", "+1.5", "-.5e-10", "1=1", "a-b", "", "'=1"])
def test_numbers_and_other_texts_of_a_spreadsheet_stay(text: str):
    assert csv_cell(text) == text


def _findings(source: str) -> Iterator[str]:
    """Where a source prints past `printing`, or has a renderer read markup out of what it prints."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in (
            "print",
            "Console",
            "rich.print",
            "sys.stdout.write",
            "sys.stderr.write",
            "Text.from_markup",
            "typer.echo",
            "typer.secho",
        ):
            yield f"line {node.lineno}: {name}"
        if name == "TextColumn" and not any(keyword.arg == "markup" and ast.unparse(keyword.value) == "False" for keyword in node.keywords):
            yield f"line {node.lineno}: a TextColumn that reads markup"
        if any(keyword.arg in ("markup", "emoji") and ast.unparse(keyword.value) == "True" for keyword in node.keywords):
            yield f"line {node.lineno}: {name} reads markup"


def test_everything_that_the_package_prints_goes_through_this_module():
    root = Path(ray_sassl.__file__).parent
    found = {path: list(_findings(path.read_text())) for path in root.rglob("*.py") if path.name != "console.py"}
    assert {path: lines for path, lines in found.items() if lines} == {}
    for line in ("print(name)", "Console().print(name)", 'TextColumn("{task.description}")', "console.print(name, markup=True)"):
        assert list(_findings(line))
