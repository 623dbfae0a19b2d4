"""Named experiments: every public function of this package's modules that returns an `ExperimentConfig` is one.

The function's name is the experiment's name; the first line of its docstring is what `ray-sassl experiments` shows, the rest says where
the settings come from, what the run costs and what score to expect. To add one, write the function.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import UsageError, did_you_mean

Experiment = Callable[[], ExperimentConfig]


def experiments() -> dict[str, Experiment]:
    """All experiments by name, in the order of the modules and of the functions in them."""
    found: dict[str, Experiment] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: (info.name != "demo", info.name)):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in vars(module).items():
            if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
                found[name] = function
    return found


def load_experiment(name: str) -> ExperimentConfig:
    """The config of the experiment.

    Raises:
        UsageError: no experiment has this name; the nearest is named.
    """
    known = experiments()
    if name not in known:
        raise UsageError(f"no experiment is called {name!r}{did_you_mean(name, known)}. `ray-sassl experiments` lists them.")
    return known[name]()


def data_root() -> str:
    """The folder that experiments on public data sets look in: RAY_SASSL_DATA, else `data` in the current folder."""
    return os.environ.get("RAY_SASSL_DATA", "data")
