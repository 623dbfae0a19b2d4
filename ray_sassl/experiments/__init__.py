"""Named experiments: every public function of this package's modules that returns an `ExperimentConfig` is one.

The function's name is the experiment's name. `ray-sassl experiments` shows the first line of its docstring; the rest gives the source of
the settings, the cost and the expected score. To add an experiment, write a function.

Every objective has an experiment `NAME_cifar10_cpu`; without a function for it, it is derived.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import UsageError, did_you_mean, load_plugin, plugin_names

Experiment = Callable[[], ExperimentConfig]
_METHODS = "ray_sassl.methods"


def experiments() -> dict[str, Experiment]:
    """All experiments by name, in the order of the modules and of the functions in them; the derived ones come last."""
    found: dict[str, Experiment] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: (info.name != "demo", info.name)):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in vars(module).items():
            if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == module.__name__:
                found[name] = function
    for method in plugin_names(_METHODS):
        found.setdefault(f"{method}_cifar10_cpu", _derived(method, found["simclr_cifar10_cpu"]))
    return found


def _derived(method: str, base: Experiment) -> Experiment:
    """The small experiment of an objective without a function for it."""

    def experiment() -> ExperimentConfig:
        config = load_plugin(_METHODS, method).Config().reduced(512)
        return base().model_copy(update={"name": f"{method}_cifar10_cpu", "method": config})

    experiment.__doc__ = f"`simclr_cifar10_cpu` with `method={method}` in its default form, no width above 512."
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
