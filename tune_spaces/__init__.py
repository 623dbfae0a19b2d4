"""Search spaces, one file each: `tune_spaces/style_strength.py` is `ray-sassl search style_strength`.

A file has a docstring, whose first line is shown in lists, the name of its base experiment, and a function:

    EXPERIMENT = "moco_cifar10_cpu_sassl"

    def space(base: ExperimentConfig) -> SearchSpace: ...

The function is given the base experiment with the user's changes, so that it can follow the method or the style bank that it finds there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import ValidationError

from ray_sassl.config.overrides import explain
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files.safe_yaml import load_file
from ray_sassl.plugins import did_you_mean, find_modules, import_found, module_of_file
from ray_sassl.process.errors import UsageError
from ray_sassl.study.space import SearchSpace


@dataclass(frozen=True)
class SpaceSource:
    """A search space that was found, before its base experiment is known.

    Attributes:
        name: Of the file, without its ending.
        about: One line.
        experiment: The name of the base experiment, or a YAML file.
        space: Makes the space for the base experiment.
    """

    name: str
    about: str
    experiment: str
    space: Callable[[ExperimentConfig], SearchSpace]


def spaces() -> dict[str, SpaceSource]:
    """All spaces by name: those of this package, and those that other distributions bring."""
    return {name: _of_module(import_found(module), name) for name, module in find_modules(__name__).items()}


def load_space(name_or_file: str) -> SpaceSource:
    """The space of this name, or in this `.py` or `.yaml` file; a Python file is run.

    Raises:
        UsageError: nothing has this name, or the file does not hold a space.
    """
    if name_or_file.endswith((".py", ".yaml", ".yml")):
        path = Path(name_or_file)
        if not path.is_file():
            raise UsageError(f"there is no file {name_or_file}")
        return _of_module(module_of_file(path), path.stem) if path.suffix == ".py" else _of_yaml_file(path)
    known = spaces()
    if name_or_file not in known:
        raise UsageError(
            f"no search space is called {name_or_file!r}{did_you_mean(name_or_file, known)}. Known: {', '.join(known)}; or give a .py or "
            f".yaml file."
        )
    return known[name_or_file]


def _of_module(module: ModuleType, name: str) -> SpaceSource:
    experiment, space = getattr(module, "EXPERIMENT", None), getattr(module, "space", None)
    if not isinstance(experiment, str) or not callable(space):
        raise UsageError(f"{module.__file__} is not a search space: it needs EXPERIMENT = '...' and a function space(base)")
    make = cast(Callable[[ExperimentConfig], SearchSpace], space)
    return SpaceSource(name, (module.__doc__ or "").strip().partition("\n")[0], experiment, make)


def _of_yaml_file(path: Path) -> SpaceSource:
    tree: Any = load_file(str(path))
    if not isinstance(tree, dict) or not isinstance(tree.get("experiment"), str):
        raise UsageError(f"{path} is not a search space: it needs `experiment: NAME` and `parameters: [...]`")
    fields = dict(tree)
    experiment, about = fields.pop("experiment"), str(fields.pop("about", ""))
    try:
        space = SearchSpace.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from error
    return SpaceSource(path.stem, about, experiment, lambda base: space)
