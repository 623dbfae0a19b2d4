"""What every command does in any terminal: help, version, completion, narrow and colorless screens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import ray_sassl


def _run(*words: str, is_in_shell: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as installed: under its own name, which the shell's completion is made for."""
    program = "import sys; sys.argv[0] = 'ray-sassl'; from ray_sassl.cli import main; main()"
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    shell = ["bash", "-c", '"$@"; exit', "bash"] if is_in_shell else []  # completion is for the shell that is found among the parents
    command = [*shell, sys.executable, "-c", program, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=kept | environment)


def test_without_arguments_three_commands_are_shown():
    result = _run()
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("  ray-sassl")]
    assert len(lines) == 3
    assert "ray-sassl pretrain" in lines[1]


def test_the_version_is_an_option_and_a_verb():
    assert _run("--version").stdout == _run("version").stdout == f"{ray_sassl.__version__}\n"


@pytest.mark.parametrize("words", [("-h",), ("pretrain", "-h"), ("data", "check", "-h")])
def test_help_has_a_short_form_everywhere(words: tuple[str, ...]):
    assert _run(*words).stdout == _run(*words[:-1], "--help").stdout


def test_the_shell_completes_verbs():
    assert "_RAY_SASSL_COMPLETE=complete_bash" in _run("--show-completion", is_in_shell=True).stdout
    found = _run(is_in_shell=True, _RAY_SASSL_COMPLETE="complete_bash", COMP_WORDS="ray-sassl pre", COMP_CWORD="1")
    assert found.stdout.split() == ["pretrain"]


def test_help_and_tables_fit_a_narrow_terminal():
    for words in (("-h",), ("pretrain", "-h"), ("experiments",)):
        lines = _run(*words, COLUMNS="60").stdout.splitlines()
        assert max(map(len, lines)) <= 60, words


@pytest.mark.parametrize("environment", [{"TERM": "xterm-256color"}, {"NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "ascii"}])
def test_nothing_but_text_is_printed_into_a_pipe(environment: dict[str, str]):
    result = _run("experiments", is_in_shell=False, **environment)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    if environment.get("PYTHONIOENCODING"):
        assert result.stdout.isascii()
