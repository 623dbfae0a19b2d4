"""The config of a run, from an experiment, a YAML file, a run directory, a config, or the images to train on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ray_sassl.config.files import read_config
from ray_sassl.config.overrides import Override, apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.files import CONFIG
from ray_sassl.runs.recipe import choose_recipe, is_data

Overrides = Mapping[str, Any] | Sequence[Override] | None
"""Changes to a config: `{"train.epochs": 20}`, or `path=value` texts as on the command line."""


def load_config(experiment: ExperimentConfig | str | os.PathLike[str], overrides: Overrides = None) -> ExperimentConfig:
    """The config of a run, with the overrides applied.

    Args:
        experiment: A config, an experiment's name, a YAML file, a run directory, or images, for which `choose_recipe` chooses the config;
            paths may be URIs.
        overrides: Changes by path, applied in order.

    Raises:
        UsageError: nothing has that name, or an override has an unknown path or an invalid value.
    """
    if not isinstance(experiment, ExperimentConfig) and names_data(experiment):
        return choose_recipe(os.fspath(experiment), override_list(overrides)).config
    return apply_overrides(_base(experiment), override_list(overrides))


def names_data(experiment: ExperimentConfig | str | os.PathLike[str]) -> bool:
    """Whether the argument names images, not a config, an experiment, a YAML file or a run directory."""
    if isinstance(experiment, ExperimentConfig):
        return False
    return is_data(name := os.fspath(experiment)) and not storage.exists(storage.join(name, CONFIG))


def _base(experiment: ExperimentConfig | str | os.PathLike[str]) -> ExperimentConfig:
    if isinstance(experiment, ExperimentConfig):
        return experiment
    name = os.fspath(experiment)
    if name.endswith((".yaml", ".yml")):
        if not storage.exists(name):
            raise UsageError(f"there is no file {name}")
        return read_config(name)
    if storage.exists(path := storage.join(name, CONFIG)):
        return read_config(path)
    if "/" in name and not storage.exists(name):
        raise UsageError(f"there is nothing at {name}; give images, an experiment's name, a YAML file, or a run directory")
    return load_experiment(name)


def override_list(overrides: Overrides) -> list[Override]:
    """The overrides as `apply_overrides` takes them.

    Raises:
        UsageError: a value is neither a plain value nor a config.
    """
    if not isinstance(overrides, Mapping):
        return list(overrides or ())
    return [(path, _plain(path, value)) for path, value in overrides.items()]


def _plain(path: str, value: Any) -> Any:
    """The value as JSON values."""

    def plain(other: Any) -> Any:
        if isinstance(other, BaseModel):
            return other.model_dump(mode="json")
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        raise TypeError(type(other).__name__)

    try:
        return json.loads(json.dumps(value, default=plain))
    except TypeError as error:
        raise UsageError(f"override {path!r}: {error} is not a value of a config") from error


def default_run_dir(experiment: object, config: ExperimentConfig) -> str:
    """The default directory of a run: the run directory that its config comes from, else `runs/NAME`."""
    if isinstance(experiment, str | os.PathLike) and storage.exists(storage.join(experiment, CONFIG)):
        return os.fspath(experiment)
    return f"runs/{config.name}"
