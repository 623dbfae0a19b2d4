"""Named experiments: every public function of this package's modules that returns an `ExperimentConfig` is one.

The function's name is the experiment's name. `ray-sassl experiments` shows the first line of its docstring; the rest gives the source of
the settings, the cost and the expected score. To add an experiment, write a function.

Every objective has an experiment `NAME_cifar10_cpu`; without a function for it, it is derived.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sassl.plugins import did_you_mean, find_modules, load_plugin, plugin_names
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.config.schema import ExperimentConfig

    Experiment = Callable[[], ExperimentConfig]
_METHODS = "ray_sassl.methods"


def experiments() -> dict[str, Experiment]:
    """All experiments by name, in the order of the modules and of the functions in them; the derived ones come last."""
    found: dict[str, Experiment] = {}
    for module_name in _modules():
        module = importlib.import_module(module_name)
        for name, function in vars(module).items():
            if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
                found[name] = function
    for method in plugin_names(_METHODS):
        found.setdefault(f"{method}_cifar10_cpu", _derived(method, found["simclr_cifar10_cpu"]))
    return found


def summaries() -> dict[str, str]:
    """One line about each experiment, in the order of `experiments`; sources are read and not run: torch takes seconds to import."""
    found: dict[str, str] = {}
    for module_name in _modules():
        for part in _source(module_name):
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                found[part.name] = (ast.get_docstring(part) or "").partition("\n")[0]
    for method, module_name in find_modules(_METHODS).items():
        if any(_defines(part, "Config") for part in _source(module_name)):
            found.setdefault(f"{method}_cifar10_cpu", _summary_of_derived(method))
    return found


def _modules() -> list[str]:
    infos = (info for info in pkgutil.iter_modules(__path__) if not info.ispkg)
    infos = sorted(infos, key=lambda info: (info.name != "demo", info.name))
    return [f"{__name__}.{info.name}" for info in infos]


def _source(module_name: str) -> list[ast.stmt]:
    """What stands at the top level of a module's source; the package that it is in is not imported."""
    package = importlib.util.find_spec(module_name.rpartition(".")[0])
    assert package is not None
    spec = PathFinder.find_spec(module_name, package.submodule_search_locations)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_bytes()).body


def _defines(part: ast.stmt, name: str) -> bool:
    """Whether the statement gives a module this name."""
    if isinstance(part, ast.ImportFrom | ast.Import):
        return any((alias.asname or alias.name) == name for alias in part.names)
    targets = part.targets if isinstance(part, ast.Assign) else [part]
    return any(getattr(target, "id", getattr(target, "name", None)) == name for target in targets)


def _summary_of_derived(method: str) -> str:
    return f"`simclr_cifar10_cpu` with `method={method}` in its default form, no width above 512."


def _derived(method: str, base: Experiment) -> Experiment:
    """The small experiment of an objective without a function for it."""

    def experiment() -> ExperimentConfig:
        config = load_plugin(_METHODS, method).Config().reduced(512)
        return base().model_copy(update={"name": f"{method}_cifar10_cpu", "method": config})

    experiment.__doc__ = _summary_of_derived(method)
    return experiment


def load_experiment(name: str) -> ExperimentConfig:
    """The config of the experiment.

    Raises:
        UsageError: no experiment has this name; the message names the nearest.
    """
    known = experiments()
    if name not in known:
        raise UsageError(f"no experiment is called {name!r}{did_you_mean(name, known)}. `ray-sassl experiments` lists them.")
    return known[name]()


def data_root() -> str:
    """The folder of public data sets: RAY_SASSL_DATA, else `data` in the current folder."""
    return os.environ.get("RAY_SASSL_DATA", "data")
