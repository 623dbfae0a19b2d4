"""Ablations, one table a file: `ablations/sassl_view.py` is `ray-sassl ablation sassl_view`.

A file has a docstring, whose first line is shown in lists, its base experiments by size, and a function:

    EXPERIMENTS = sized("moco", "_sassl")

    def arms(base: ExperimentConfig) -> list[Arm]: ...

The function is given the base experiment with the user's changes, so that an arm can follow what it finds there. An arm is a set of changes
to the base experiment, or to another one. `PROTOCOLS = ("knn", ...)` names protocols of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

from ray_sassl.plugins import did_you_mean, find_modules, import_found, module_of_file
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.config.overrides import Override
    from ray_sassl.config.schema import ExperimentConfig

Size = Literal["cpu", "gpu", "imagenet100", "imagenet"]
SIZES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu": ("cifar10_cpu", ("scaling.num_workers=0",)),
    "gpu": ("cifar10", ("scaling.num_workers=1", "scaling.use_gpu=true")),
    "imagenet100": ("imagenet100", ()),
    "imagenet": ("imagenet", ()),
}
"""By size: the end of the experiments' names, and changes. `cpu` is for two cores, a run in one process each; `gpu` for one GPU; the others
for the machines that their experiments name."""
DEFAULT_PROTOCOLS = ("knn", "linear")


@dataclass(frozen=True)
class Arm:
    """One row of a table.

    Attributes:
        name: Unique within the table.
        overrides: Changes to the experiment.
        experiment: Another experiment than the table's base.
        against: The arms that it is compared with; by default the first of the table.
        dose_of: Another arm: alpha and beta are chosen so that this arm's stylizer changes pixels as much as that arm's does.
    """

    name: str
    overrides: tuple[Override, ...] = ()
    experiment: str | None = None
    against: tuple[str, ...] | None = None
    dose_of: str | None = None


@dataclass(frozen=True)
class Ablation:
    """A table before its base experiment is known.

    Attributes:
        name: Of the file, without its ending.
        about: One line.
        experiments: The base experiment of each size.
        arms: Makes the arms for a base experiment.
        protocols: What encoders are evaluated by.
    """

    name: str
    about: str
    experiments: dict[str, str]
    arms: Callable[[ExperimentConfig], Sequence[Arm]]
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS


def sized(family: str, style: str = "") -> dict[str, str]:
    """The experiments of a family of each size: `sized("moco", "_sassl")["gpu"]` is `moco_cifar10_sassl`."""
    return {size: f"{family}_{end}{style}" for size, (end, _) in SIZES.items()}


def ablations() -> dict[str, Ablation]:
    """All tables by name: those of this package, and those that other distributions bring."""
    return {name: _of_module(import_found(module), name) for name, module in find_modules(__name__).items()}


def load_ablation(name_or_file: str) -> Ablation:
    """The table of this name, or in this `.py` file, which is run.

    Raises:
        UsageError: nothing has this name, or the file does not hold a table.
    """
    if name_or_file.endswith(".py"):
        path = Path(name_or_file)
        return _of_module(module_of_file(path), path.stem)
    known = find_modules(__name__)
    if name_or_file not in known:
        raise UsageError(
            f"no ablation is called {name_or_file!r}{did_you_mean(name_or_file, known)}. Known: {', '.join(known)}; or give a .py file."
        )
    return _of_module(import_found(known[name_or_file]), name_or_file)


def _of_module(module: ModuleType, name: str) -> Ablation:
    experiments, arms = getattr(module, "EXPERIMENTS", None), getattr(module, "arms", None)
    if not isinstance(experiments, dict) or not callable(arms):
        raise UsageError(f"{module.__file__} is not an ablation: it needs EXPERIMENTS = {{size: experiment}} and a function arms(base)")
    about = (module.__doc__ or "").strip().partition("\n")[0]
    make = cast("Callable[[ExperimentConfig], Sequence[Arm]]", arms)
    return Ablation(name, about, experiments, make, tuple(getattr(module, "PROTOCOLS", DEFAULT_PROTOCOLS)))
