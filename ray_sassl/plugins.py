"""A file is a plug-in: the modules of a package are found by name, and each owns its frozen `Config`.

A plug-in module holds one class `Config(PluginConfig)` whose `build(...)` returns the module's one final class. The package's
`__init__` holds the abstract contract. Nothing is registered: `methods/moco.py` is `method=moco` because the file is there.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


class UsageError(ValueError):
    """An error that the user can mend; the command line shows its message without a traceback."""


class UnknownPluginError(UsageError):
    """No plug-in of that name is in the package."""


class FrozenConfig(BaseModel):
    """A config model: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


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
SEED = Role(shapes_weights=False)
"""Seeds of one recipe differ in it; a run keeps it."""


class PluginConfig(FrozenConfig):
    """The config of one plug-in; its module's file name is the plug-in's name."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]


def plugin_names(package: str) -> list[str]:
    """The plug-ins of a package, in alphabetical order: its public modules that define a `Config`."""
    folder = importlib.import_module(package)
    modules = (info.name for info in pkgutil.iter_modules(folder.__path__) if not info.name.startswith("_"))
    return sorted(name for name in modules if hasattr(importlib.import_module(f"{package}.{name}"), "Config"))


def load_plugin(package: str, name: str) -> ModuleType:
    """The plug-in's module.

    Raises:
        UnknownPluginError: no module of that name with a `Config` is in the package; the message lists the known ones.
    """
    known = plugin_names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UnknownPluginError(f"{kind} has no {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return importlib.import_module(f"{package}.{name}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


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
