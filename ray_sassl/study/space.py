"""Search spaces: which fields of a config are searched, in which ranges, and under which conditions.

A point of a space is a flat mapping from the names of its dimensions to numbers and strings. It corresponds to a list of `path=value`
overrides of the base experiment.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_sassl.config.overrides import Override, OverrideError, apply_overrides, field_paths, path_of, value_of
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import FrozenConfig, PluginConfig
from ray_sassl.process.errors import UsageError
from ray_sassl.style.dose import Curve, interval_at, strength_for
from ray_sassl.style.stylizers import StylizerConfig

Scalar = str | float | int | bool | None
Point = dict[str, Scalar]
"""Dimension name -> value; dimensions whose condition does not hold are missing."""


class SpaceError(UsageError):
    """The search space does not fit its base experiment."""


@dataclass(frozen=True)
class Dimension:
    """One number or string that a searcher chooses.

    Attributes:
        name: Unique within the space.
        choices: The values of a categorical dimension; None for a number.
        low, high: The inclusive range of a number.
        is_log: Whether a number is drawn on a logarithmic scale.
        is_int: Whether a number is an integer.
    """

    name: str
    choices: tuple[Scalar, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_int: bool = False

    def at(self, share: float) -> Scalar:
        """The value at a share in [0, 1) of the range, rounded to four digits and kept within the range."""
        if self.choices is not None:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.is_int:
            return self.tidy(
                self._between(self.low - 0.5, self.high + 0.5, share) if not self.is_log else self._between(self.low, self.high, share)
            )
        return self.tidy(self._between(self.low, self.high, share))

    def tidy(self, value: Scalar) -> Scalar:
        """The value, rounded if it is a number; it stays within the range."""
        if self.choices is not None:
            return value
        assert isinstance(value, int | float)
        number = round(value) if self.is_int else float(f"{value:.4g}")
        return min(max(number, int(self.low) if self.is_int else self.low), int(self.high) if self.is_int else self.high)

    def grid(self, points: int) -> list[Scalar]:
        """All choices, or evenly spaced values from end to end."""
        if self.choices is not None:
            return list(self.choices)
        shares = [number / max(1, points - 1) for number in range(points)]
        return list(dict.fromkeys(self.tidy(self._between(self.low, self.high, share)) for share in shares))

    def _between(self, low: float, high: float, share: float) -> float:
        return math.exp(math.log(low) + (math.log(high) - math.log(low)) * share) if self.is_log else low + (high - low) * share


class _Parameter(FrozenConfig):
    """The common fields of all parameters."""

    path: str | tuple[str, ...] = Field(min_length=1)
    """The config field, or several that get the same value."""
    name: str = ""
    """Name in tables and conditions; by default the (first) path. Two parameters may share a path if their conditions exclude each
    other."""
    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """The parameter exists only if each of these (a parameter's name or a config path) has one of the values; a plug-in's value is its
    name."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def key(self) -> str:
        return self.name or self.paths[0]


class _Number(_Parameter):
    low: float
    high: float
    log: bool = False
    """Whether it is drawn on a logarithmic scale."""

    @model_validator(mode="after")
    def _range_in_order(self) -> Self:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self.key}: a range needs low <= high, and low > 0 on a logarithmic scale, not {self.low} and {self.high}")
        return self


class Float(_Number):
    """A number; with `factors`, each path gets the number times its factor."""

    kind: Literal["float"] = "float"
    factors: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _a_factor_for_each_path(self) -> Self:
        if self.factors and len(self.factors) != len(self.paths):
            raise ValueError(f"{self.key}: {len(self.factors)} factors for {len(self.paths)} paths")
        return self

    def dimensions(self) -> list[Dimension]:
        return [Dimension(self.key, low=self.low, high=self.high, is_log=self.log)]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        number = point[self.key]
        assert isinstance(number, int | float)
        for path, factor in zip(self.paths, self.factors or itertools.repeat(1.0), strict=False):
            yield path, number * factor


class Int(_Number):
    """An integer."""

    kind: Literal["int"] = "int"

    def dimensions(self) -> list[Dimension]:
        return [Dimension(self.key, low=self.low, high=self.high, is_log=self.log, is_int=True)]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        for path in self.paths:
            yield path, point[self.key]


class Choice(_Parameter):
    """One of several values of a field, which may be mappings: `{style_source: bank, bank: FILE}`."""

    kind: Literal["choice"] = "choice"
    choices: tuple[Any, ...] = Field(min_length=1)

    def dimensions(self) -> list[Dimension]:
        return [Dimension(self.key, choices=tuple(_label(value) for value in self.choices))]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        chosen = next(value for value in self.choices if _label(value) == point[self.key])
        for path in self.paths:
            yield path, chosen


class Interval(_Parameter):
    """A field that is an interval, searched by its lower end and its width, so every draw is valid: [low, min(low + width, most)].

    Without a width the interval always ends at `most`.
    """

    kind: Literal["interval"] = "interval"
    low: tuple[float, float]
    """Range of the lower end."""
    width: tuple[float, float] | None = None
    """Range of the width."""
    most: float = 1.0

    @model_validator(mode="after")
    def _ranges_in_order(self) -> Self:
        if not self.low[0] <= self.low[1] <= self.most or (self.width and not 0 <= self.width[0] <= self.width[1]):
            raise ValueError(f"{self.key}: an interval needs low[0] <= low[1] <= most and 0 <= width[0] <= width[1]")
        return self

    def dimensions(self) -> list[Dimension]:
        low = Dimension(f"{self.key}.low", low=self.low[0], high=self.low[1])
        return [low] if self.width is None else [low, Dimension(f"{self.key}.width", low=self.width[0], high=self.width[1])]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        low = point[f"{self.key}.low"]
        assert isinstance(low, int | float)
        width = self.most if self.width is None else point[f"{self.key}.width"]
        assert isinstance(width, int | float)
        for path in self.paths:
            yield path, [low, float(f"{min(low + width, self.most):.10g}")]


class Dose(_Number):
    """The dose of style in gray levels, in the place of alpha and beta: they are read from the curve that was measured for the stylizer, so
    the same dose changes pixels as much with any of them."""

    kind: Literal["dose"] = "dose"
    path: str | tuple[str, ...] = ("sassl.alpha", "sassl.beta")
    name: str = "dose"
    curves: Mapping[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    """(strength, gray levels) by stylizer, see `style/dose.py`; a search measures them once, on its own images, and records them."""

    def dimensions(self) -> list[Dimension]:
        return [Dimension(self.key, low=self.low, high=self.high, is_log=self.log)]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        dose, stylizer = point[self.key], point.get(STYLIZER, next(iter(self.curves), None))
        assert isinstance(dose, int | float)
        if stylizer not in self.curves:
            raise SpaceError(f"{self.key}: no dose was measured for stylize={stylizer}")
        try:
            interval = interval_at(round(strength_for(self.curves[str(stylizer)], dose), 4))
        except UsageError as error:
            raise SpaceError(f"{self.key}, stylize={stylizer}: {error}; lower the upper end of the range") from error
        for path in self.paths:
            yield path, list(interval)


class Arms(FrozenConfig):
    """The arms of an ablation: each is a set of changes to the base experiment."""

    kind: Literal["arms"] = "arms"
    key: str = "arm"
    arms: Mapping[str, Mapping[str, Any]] = Field(min_length=1)
    """Values by path, by the arm's name."""
    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for changes in self.arms.values() for path in changes))

    def dimensions(self) -> list[Dimension]:
        return [Dimension(self.key, choices=tuple(self.arms))]

    def values(self, point: Point) -> Iterator[tuple[str, Any]]:
        yield from self.arms[str(point[self.key])].items()


STYLIZER = "stylize"
Parameter = Annotated[Float | Int | Choice | Interval | Dose | Arms, Field(discriminator="kind")]


class SearchSpace(FrozenConfig):
    """What is searched, and the defaults of how it is searched."""

    parameters: tuple[Parameter, ...] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    """Changes to the base experiment, such as shorter runs, which are applied before the user's own."""
    objectives: tuple[str, ...] = ("knn_top1",)
    """Metrics that a run reports; the first one is used for early stopping. `effective_rank:min` means that less is better."""
    searcher: Literal["random", "grid", "optuna", "hyperband-bayes"] = "optuna"
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "asha"
    num_trials: int = Field(default=20, ge=1)
    grace: int = Field(default=1, ge=1)
    """Evaluations that every trial gets before it may be stopped."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """ASHA continues the best 1 / reduction_factor of a rung."""

    @field_validator("objectives")
    @classmethod
    def _objectives_can_be_read(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if not objectives or len({Objective.parse(text).metric for text in objectives}) != len(objectives):
            raise ValueError("give one or several different objectives, such as knn_top1 or images_per_s")
        return objectives

    @model_validator(mode="after")
    def _dimensions_have_names_of_their_own(self) -> Self:
        names = [dimension.name for parameter in self.parameters for dimension in parameter.dimensions()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} are twice in the space; give one of them another name")
        return self

    @property
    def dimensions(self) -> list[Dimension]:
        """All dimensions, conditional ones included, in the order of the parameters."""
        return [dimension for parameter in self.parameters for dimension in parameter.dimensions()]

    def without(self, overrides: Iterable[Override]) -> SearchSpace:
        """The space without the fields that the overrides set; the other fields of a plug-in that they choose are still searched.

        Raises:
            SpaceError: nothing would be left to search.
        """
        fixed = [path for override in overrides for path in _paths_set(path_of(override), value_of(override))]

        def is_fixed(parameter: Any) -> bool:
            return any(path in fixed for path in parameter.paths)

        left = tuple(parameter for parameter in self.parameters if not is_fixed(parameter))
        if not left:
            raise SpaceError(f"{', '.join(fixed)} fix everything that the space searches; leave one of them out")
        return self.model_copy(update={"parameters": left})

    def with_curves(self, base: ExperimentConfig, measure: Callable[[ExperimentConfig], Curve]) -> SearchSpace:
        """The space with the curve of each stylizer that a dose may be of; those that are known are kept.

        Args:
            measure: Measures the curve of a config's stylizer.
        """
        choices = [p.choices for p in self.parameters if isinstance(p, Choice) and STYLIZER in p.paths] or [(base.stylize,)]
        configs = {str(_label(_name(value))): apply_overrides(base, [(STYLIZER, _plain(value))]) for value in choices[0]}

        def measured(dose: Dose) -> Dose:
            missing = {name: measure(config) for name, config in configs.items() if name not in dose.curves and not _is_none(config)}
            return Dose.model_validate(dose.model_dump() | {"curves": {**dose.curves, **missing}})

        return self.model_copy(update={"parameters": tuple(measured(p) if isinstance(p, Dose) else p for p in self.parameters)})

    def draw(self, base: ExperimentConfig, choose: Callable[[Dimension], Scalar]) -> Point:
        """A point whose values `choose` returns; it is called for the dimensions whose conditions hold, in order."""
        point: Point = {}
        for parameter in self.parameters:
            if _holds(parameter.when, point, base):
                for dimension in parameter.dimensions():
                    point[dimension.name] = dimension.tidy(choose(dimension))
        return point

    def grid(self, base: ExperimentConfig, points: int = 3) -> Iterator[Point]:
        """Every point of the grid that satisfies the conditions, with `points` values per number."""

        def complete(point: Point, rest: tuple[Any, ...]) -> Iterator[Point]:
            if not rest:
                yield dict(point)
                return
            parameter, *later = rest
            if not _holds(parameter.when, point, base):
                yield from complete(point, tuple(later))
                return
            dimensions = parameter.dimensions()
            for values in itertools.product(*(dimension.grid(points) for dimension in dimensions)):
                names = [dimension.name for dimension in dimensions]
                yield from complete(point | dict(zip(names, values, strict=True)), tuple(later))

        yield from complete({}, self.parameters)

    def overrides_of(self, point: Point) -> list[str]:
        """The point in the override language."""
        changes: list[str] = []
        for parameter in self.parameters:
            if all(dimension.name in point for dimension in parameter.dimensions()):
                changes += [f"{path}={json.dumps(value)}" for path, value in parameter.values(point)]
        return changes

    def config(self, base: ExperimentConfig, point: Point) -> ExperimentConfig:
        """The base experiment at the point.

        Raises:
            SpaceError: a path is not in the config, or a value is not allowed there.
        """
        try:
            return apply_overrides(base, self.overrides_of(point))
        except OverrideError as error:
            raise SpaceError(f"the search space does not fit {base.name}: {error}") from error

    def check(self, base: ExperimentConfig, num_draws: int = 50) -> list[ExperimentConfig]:
        """Check, before the first trial, that points spread over the space give valid configs; returns these.

        Raises:
            SpaceError: a point gives an invalid config.
        """
        configs = []
        for number in range(num_draws):
            # A Kronecker sequence: well spread in every dimension, and the same each time.
            shares = {d.name: (number * math.sqrt(prime) + 0.5) % 1 for d, prime in zip(self.dimensions, _primes(), strict=False)}
            configs.append(self.config(base, self.draw(base, lambda dimension, shares=shares: dimension.at(shares[dimension.name]))))
        return configs


@dataclass(frozen=True)
class Objective:
    """A metric and its better direction; `str()` is the inverse of `parse`."""

    metric: str
    mode: Literal["max", "min"]

    @classmethod
    def parse(cls, text: str) -> Objective:
        """The objective `metric`, `metric:max` or `metric:min`; the default is max, except for the loss.

        Raises:
            UsageError: the text has another form.
        """
        metric, _, mode = text.partition(":")
        if not metric or mode not in ("", "max", "min"):
            raise UsageError(f"{text!r} is not an objective; write a metric, such as knn_top1, or metric:min to minimize it")
        return cls(metric, mode or _usual_mode(metric))

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.mode == "max" else -1

    def __str__(self) -> str:
        return self.metric if self.mode == _usual_mode(self.metric) else f"{self.metric}:{self.mode}"


def _usual_mode(metric: str) -> Literal["max", "min"]:
    return "min" if metric == "loss" else "max"


def value_at(config: ExperimentConfig, path: str) -> Scalar:
    """The value of a config path as conditions see it: a plug-in's name; None if the path does not exist."""
    node: Any = config
    for name in path.split("."):
        node = getattr(node, name, None)
    return node.name if isinstance(node, PluginConfig) else node


def has_path(config: ExperimentConfig, path: str) -> bool:
    """Whether an override may name the path."""
    return path in set(field_paths(config))


def _holds(when: Mapping[str, tuple[Scalar, ...]], point: Point, base: ExperimentConfig) -> bool:
    return all((point[key] if key in point else value_at(base, key)) in allowed for key, allowed in when.items())


def _paths_set(path: str, value: Any) -> Iterator[str]:
    """Every path that an override sets; the name of a plug-in in a mapping sets the plug-in's path."""
    if not isinstance(value, dict):
        yield path
        if path.endswith(".name"):
            yield path.removesuffix(".name")
        return
    for name, part in value.items():
        yield from _paths_set(f"{path}.{name}", part)


def _name(value: Any) -> Any:
    """The name of a plug-in's config; what else is a choice stays."""
    return value.name if isinstance(value, PluginConfig) else value


def _plain(value: Any) -> Any:
    return {"name": value.name, **value.model_dump(mode="json")} if isinstance(value, PluginConfig) else value


def _is_none(config: ExperimentConfig) -> bool:
    """Whether the config has no style, so that a dose has no meaning and is conditional."""
    assert isinstance(config.stylize, StylizerConfig)
    return config.stylize.is_identity


def _label(value: Any) -> Scalar:
    """A choice as one scalar: mappings and lists become JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _primes() -> Iterator[int]:
    found: list[int] = []
    for number in itertools.count(2):
        if all(number % prime for prime in found):
            found.append(number)
            yield number
