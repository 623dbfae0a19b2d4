"""Every verb parses, calls the Python API and prints; and every function of the API has its verb."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import typer

import ray_sassl
import ray_sassl.cli
from ray_sassl.cli import app

CLI = Path(ray_sassl.cli.__file__).parent
WITHOUT_A_VERB = {"load_encoder"}
"""What gives an object and is not a command."""
NAMES_A_CONFIG = {"load_config", "plan_run"}
"""What a verb may call besides, to know the config that it shows or runs."""


def _verbs() -> dict[str, FunctionType]:
    """The function behind each verb, by the words that name it."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, FunctionType]]:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, (*words, name))
        else:
            yield " ".join(words), inspect.unwrap(command.callback)

    return dict(walk(typer.main.get_command(app), ()))


def _functions() -> dict[tuple[str, str], ast.FunctionDef]:
    """Every function of the command line by its module and name."""
    trees = {path.stem: ast.parse(path.read_text()) for path in CLI.glob("*.py")}
    return {(module, node.name): node for module, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


FUNCTIONS = _functions()
VERBS = _verbs()


def _called(module: str, name: str, seen: set[tuple[str, str]]) -> set[str]:
    """The names of `ray_sassl` that a function of the command line uses, itself or through others there."""
    if (module, name) in seen or (module, name) not in FUNCTIONS:
        return set()
    seen.add((module, name))
    found: set[str] = set()
    for node in ast.walk(FUNCTIONS[module, name]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "ray_sassl":
                found.add(node.attr)
            else:  # a function of another module of the command line
                found |= _called(node.value.id, node.attr, seen)
        elif isinstance(node, ast.Name):
            for other in [module, *sorted({key[0] for key in FUNCTIONS})]:
                found |= _called(other, node.id, seen) if other == module else set()
    return found


def _api_of(verb: str) -> set[str]:
    function = VERBS[verb]
    module = function.__module__.rpartition(".")[2]
    return _called("__init__" if module == "cli" else module, function.__name__, set())


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verb_calls_one_function_of_the_python_api(verb: str):
    called = _api_of(verb)
    assert called <= {*ray_sassl.__all__, "__version__"}
    assert len(called - NAMES_A_CONFIG) == 1, f"`ray-sassl {verb}` calls {sorted(called)}"


def test_every_function_of_the_api_has_a_verb():
    called = set().union(*(_api_of(verb) for verb in VERBS))
    assert set(ray_sassl.__all__) - WITHOUT_A_VERB <= called


def test_the_command_line_calls_nothing_of_orchestrate_but_what_it_shows():
    allowed = {
        "autoscaler": {"Announcer"},
        "progress": {"progress_bar"},
        "jobs.checks": {"JobCommand", "check_place"},
        "batch.evaluate": {"voc_folder", "DetectionData", "DetectionEvent", "DetectionReport"},
    }
    for path in CLI.glob("*.py"):
        tree = ast.parse(path.read_text())
        typing_only = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and (node.module or "").startswith("ray_sassl.orchestrate"):
                place = next((names for end, names in allowed.items() if (node.module or "").endswith(end)), set())
                assert {alias.name for alias in node.names} <= place, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["version"]])
def test_help_reaches_neither_torch_nor_ray(words: list[str]):
    code = (
        "import sys\nfrom ray_sassl.cli import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit:\n    pass\n"
        "print('loaded', sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "loaded []"
