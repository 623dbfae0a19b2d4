"""A file is a plug-in: the modules of a package are found by name, and each owns its frozen `Config`.

A plug-in module holds one class `Config(PluginConfig)` whose `build(...)` returns the module's one final class. The package's
`__init__` holds the abstract contract. Nothing is registered: `methods/moco.py` is `method=moco` because the file is there.

Other distributions bring plug-ins too. One names a package in the entry-point group `ray_sassl.plugins`, and that package has folders
called
after the kinds: `their_package/methods/mine.py` is `method=mine`. A folder is looked into when its kind is asked for, and not before.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, field_validator, model_validator

from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import secret_in_uri

ENTRY_POINTS = "ray_sassl.plugins"
KINDS = ("methods", "feature_aug", "stylizers", "protocols", "ablations", "tune_spaces")
"""The folders of a package that another distribution names; each is called like the package here that has the same kind of plug-ins."""


class UnknownPluginError(UsageError):
    """No plug-in of that name is in the package."""


def _are_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers, or None, and nothing else."""
    if get_origin(annotation) is Annotated:
        return _are_numbers(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(_are_numbers(option) for option in get_args(annotation) if option is not type(None))
    return annotation in (int, float)


class FrozenConfig(BaseModel):
    """A config model: immutable; an unknown field is an error, and so is a URI with a secret in any field, or a truth value for a number,
    which Python takes for 0 or 1 (YAML reads `on`, `off`, `yes` and `no` as truth values)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_truth_value_for_a_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and _are_numbers(cls.model_fields[name].annotation):
                raise ValueError(f"{name}: {str(value).lower()} is not a number; write 0, 1 or another one")
        return values

    @field_validator("*")
    @classmethod
    def _has_no_secret(cls, value: Any) -> Any:
        if objection := secret_in_uri(value):
            raise UsageError(objection)
        return value


@dataclass(frozen=True)
class Role:
    """What a config field is for, where it does not simply shape the weights: `log_every: Annotated[int, OPERATIONAL] = 20`.

    Attributes:
        shapes_weights: Runs with another value are not seeds of the same recipe.
        resume_may_change: A resumed run may have another value.
    """

    shapes_weights: bool = True
    resume_may_change: bool = False


OPERATIONAL = Role(shapes_weights=False, resume_may_change=True)
"""Where and how a run is carried out or watched, not what it computes."""
EXTENDABLE = Role(resume_may_change=True)
"""Shapes the weights, and a resumed run may change it, as when it trains for longer."""
ROUNDING = Role(shapes_weights=False)
"""Moves numbers by their last digit: runs with another value are seeds of one recipe too, and a run keeps it, so that a resume is exact."""
SEED = Role(shapes_weights=False)
"""Seeds of one recipe differ in it; a run keeps it."""


class PluginConfig(FrozenConfig):
    """The config of one plug-in; its module's file name is the plug-in's name."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def tiny(cls) -> Self:
        """A form that is quick to build and to run, for tests: the default form, unless the plug-in, or its contract, knows a smaller
        one."""
        return cls()

    def reduced(self, most: int) -> Self:
        """The same with every whole number above `most` set to it, unless the config refuses that."""
        config = self
        for name in type(self).model_fields:
            value = getattr(config, name)
            if type(value) is int and value > most:
                try:
                    config = type(self).model_validate(config.model_dump(mode="json") | {name: most})
                except ValidationError:
                    continue
        return config


def find_modules(package: str) -> dict[str, str]:
    """Where the public modules of a package are, and those of its kind in other distributions: full names by name, in alphabetical order.

    Raises:
        UsageError: two modules have the same name, or another distribution's package cannot be imported.
    """
    kind = package.rpartition(".")[2]
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    folders = {package: list(spec.submodule_search_locations or ())}
    if kind in KINDS:
        folders |= {f"{theirs}.{kind}": _folder(theirs, kind, distribution) for theirs, distribution in _their_packages(tuple(sys.path))}
    found: dict[str, str] = {}
    for folder, places in folders.items():
        for info in pkgutil.iter_modules(places):
            if info.name.startswith("_"):
                continue
            if info.name in found:
                raise UsageError(
                    f"{kind} has {info.name!r} twice: {found[info.name]} and {folder}.{info.name}; rename one of the two files"
                )
            found[info.name] = f"{folder}.{info.name}"
    return dict(sorted(found.items()))


def import_found(module: str) -> ModuleType:
    """A module that `find_modules` found.

    Raises:
        UsageError: it is another distribution's, and cannot be imported.
    """
    if module.startswith(("ray_sassl.", "tune_spaces.")):
        return importlib.import_module(module)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"the plug-in {module} cannot be imported: {type(error).__name__}: {error}") from error


def module_of_file(path: Path) -> ModuleType:
    """The module that a user's `.py` file makes; it is run.

    Raises:
        UsageError: there is no such file, or running it fails; the message names the line.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_of_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{path}{place}, cannot be run: {type(error).__name__}: {error}") from error
    return module


def plugin_names(package: str) -> list[str]:
    """The plug-ins of a package and of its kind elsewhere, in alphabetical order: the public modules that define a `Config`."""
    return [name for name, module in find_modules(package).items() if hasattr(import_found(module), "Config")]


def load_plugin(package: str, name: str) -> ModuleType:
    """The plug-in's module.

    Raises:
        UnknownPluginError: no module of that name defines a `Config`; the message lists those that do.
    """
    known = plugin_names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UnknownPluginError(f"{kind} has no {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return import_found(find_modules(package)[name])


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


@lru_cache(maxsize=1)
def _their_packages(path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The packages that installed distributions name, each with its distribution; the import path decides what is installed.

    Raises:
        UsageError: one has none of the folders that are looked for.
    """
    del path
    found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        distribution = entry.dist.name if entry.dist is not None else entry.name
        if not any(_folder(entry.module, kind, distribution) for kind in KINDS):
            raise UsageError(
                f"the package {entry.module} of {distribution} has no plug-ins: it needs a folder {', '.join(KINDS[:-1])} or {KINDS[-1]}"
            )
        found.append((entry.module, distribution))
    return tuple(sorted(set(found)))


def _folder(package: str, kind: str, distribution: str) -> list[str]:
    """Where a package's modules of a kind are; empty if it has none."""
    try:
        spec = importlib.util.find_spec(f"{package}.{kind}")
    except Exception as error:
        raise UsageError(f"the plug-ins of {distribution} cannot be imported: {package}: {type(error).__name__}: {error}") from error
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _parse(package: str, value: Any) -> Any:
    if isinstance(value, str):
        return load_plugin(package, value).Config()
    if isinstance(value, dict):
        fields = dict(value)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f"a {package.rpartition('.')[2]} config needs a 'name', one of: {', '.join(plugin_names(package))}")
        return load_plugin(package, name).Config(**fields)
    return value


def _dump(config: PluginConfig) -> dict[str, Any]:
    return {"name": config.name, **config.model_dump(mode="json")}


def plugin_field(package: str, contract: type[PluginConfig]) -> Any:
    """The pydantic type of a config field that takes any plug-in of the package: a name, `{name: ..., field: ...}` or a `Config`.

    Args:
        package: Where the plug-ins' modules are.
        contract: The class that their `Config`s extend.
    """
    return Annotated[contract, BeforeValidator(partial(_parse, package)), PlainSerializer(_dump)]
