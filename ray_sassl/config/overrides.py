"""The override language: `path=value`, where the path walks the config tree by dots and the value is YAML.

`train.epochs=10`, `views.left.crop_scale=[0.2, 1.0]`, `method.temperature=0.2`. A plug-in is chosen by its name, `method=byol`, and then
has its own defaults; overrides are applied in order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ray_sassl.data import DataConfig
from ray_sassl.files.safe_yaml import load_document, refuse_leading_zero
from ray_sassl.plugins import PluginConfig
from ray_sassl.process.errors import UsageError

ModelT = TypeVar("ModelT", bound=BaseModel)
Override = str | tuple[str, Any]
"""A change: `path=value` as on the command line, or a path and a value."""


class OverrideError(UsageError):
    """An override names no field, or gives a field a value that it does not accept."""


def apply_overrides(config: ModelT, overrides: Iterable[Override]) -> ModelT:
    """The config with changes applied in order: `path=value` texts, whose values are YAML, or (path, value) pairs, whose values are used
    unchanged.

    A text field gets the text as it was given, even if YAML would read a number or a comment in it; quotes around it are removed, and
    `null` and lists are parsed if the field accepts them.

    A value that is only valid together with later ones waits for them, as in `sassl.style_source=bank sassl.bank=FILE`.

    Raises:
        OverrideError: an override has another form, an unknown path (the message names the nearest) or an invalid value.
    """
    waiting: list[tuple[str, Any]] = []
    first_error: OverrideError | None = None
    for override in overrides:
        path, value = split_override(override) if isinstance(override, str) else override
        try:
            _check_path(config, path)
        except OverrideError as error:  # a path may be missing because of a value that was refused before
            raise first_error or error from None
        if isinstance(override, str):
            value = _as_text_field(config, path, value) if _takes(config, path, str) else parse_override(override)[1]
        try:
            config = _set(config, [*waiting, (path, value)])
        except OverrideError as error:
            waiting.append((path, value))
            first_error = first_error or error
        else:
            waiting, first_error = [], None
    if first_error is not None:
        raise first_error
    return config


def path_of(override: Override) -> str:
    """The path that an override changes.

    Raises:
        OverrideError: it is a text of another form than `path=value`.
    """
    return split_override(override)[0] if isinstance(override, str) else override[0]


def value_of(override: Override) -> Any:
    """The value that an override sets, as far as it is known without the config: text that is not YAML stays text."""
    if not isinstance(override, str):
        return override[1]
    try:
        return parse_override(override)[1]
    except OverrideError:
        return split_override(override)[1]


def split_override(override: str) -> tuple[str, str]:
    """The path and the text of `path=text`.

    Raises:
        OverrideError: the override has another form.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise OverrideError(f"{override!r} is not an override; write path=value, such as train.epochs=10")
    return path, text


def strictly(config: ModelT) -> ModelT:
    """The config in which nothing may be left out of any data set that it names."""
    if isinstance(config, DataConfig):
        return config.model_copy(update={"strict": True})
    values = {name: getattr(config, name) for name in type(config).model_fields}
    return config.model_copy(update={name: strictly(value) for name, value in values.items() if isinstance(value, BaseModel)})


def parse_override(override: str) -> tuple[str, Any]:
    """The path and the value of `path=value`.

    Raises:
        OverrideError: the override has another form, or the value is not YAML.
    """
    path, text = split_override(override)
    try:
        return path, _number(load_document(text, "the value"))
    except UsageError as error:
        raise OverrideError(f"{override!r}: {error}") from error


def _as_text_field(config: BaseModel, path: str, text: str) -> Any:
    """The value of a text field for a given text."""
    if not text.strip() or text.strip().lower() == "null":
        return None if _takes(config, path, type(None)) else text
    try:
        value = load_document(text, "the value")
    except UsageError:
        return text
    if isinstance(value, list) and text.strip()[0] == "[" and _takes(config, path, tuple):
        return value
    return value if isinstance(value, str) and text.strip()[0] in "'\"" else text


def _takes(config: BaseModel, path: str, kind: type) -> bool:
    """Whether the field at the path accepts the type, alone or among others."""
    *parents, last = path.split(".")
    for name in parents:
        config = getattr(config, name)
    annotation = type(config).model_fields[last].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return any(option is kind or get_origin(option) is kind for option in options)


def field_paths(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """Every path that an override can name, parents before their children."""
    for name in _fields(model):
        yield prefix + name
        child = getattr(model, name)
        if isinstance(child, BaseModel):
            yield from field_paths(child, f"{prefix}{name}.")


def _set(config: ModelT, changes: list[tuple[str, Any]]) -> ModelT:
    """The config with all changes applied at once."""
    tree = config.model_dump(mode="json")
    for path, value in changes:
        *parents, last = path.split(".")
        node, model = tree, config
        for name in parents:
            node, model = node[name], getattr(model, name)
        node[last] = node[last] | value if _is_part(value, getattr(model, last)) else value
    try:
        return type(config).model_validate(tree)
    except (ValidationError, UsageError) as error:
        raise OverrideError(f"{' '.join(f'{path}={value}' for path, value in changes)}: {explain(error)}") from error


def _is_part(value: Any, present: Any) -> bool:
    """Whether a mapping changes only some fields of the present value; a plug-in with another name gets its own defaults instead."""
    if not isinstance(value, dict) or not isinstance(present, BaseModel):
        return False
    return not isinstance(present, PluginConfig) or value.get("name", present.name) == present.name


def _check_path(config: BaseModel, path: str) -> None:
    known = list(field_paths(config))
    if path in known:
        return
    node: Any = config
    for depth, name in enumerate(path.split(".")):
        if isinstance(node, BaseModel) and name in _fields(node):
            node = getattr(node, name)
            continue
        where = ".".join(path.split(".")[:depth]) or "the config"
        if node is None:
            raise OverrideError(f"{path}: {where} is not set; give it whole first, as in {where}={{path: ...}}")
        nearest = _nearest(path, known) if isinstance(node, BaseModel) else where
        raise OverrideError(f"{path} is not in the config; the nearest is {nearest}")


def _nearest(path: str, known: list[str]) -> str:
    """The known path most similar to the given one: the last part counts most, since people forget where a field is, or half of its
    name."""
    given = path.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        last = candidate.rpartition(".")[2]
        return (given in last) + difflib.SequenceMatcher(None, last, given).ratio() + difflib.SequenceMatcher(None, candidate, path).ratio()

    return max(known, key=likeness)


def _fields(model: BaseModel) -> list[str]:
    return list(type(model).model_fields)


def _number(value: Any) -> Any:
    """The value, as a number if it is a string like 1e-3, which YAML 1.1 does not read as a number."""
    if isinstance(value, str):
        refuse_leading_zero(value)
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: ValidationError | UsageError) -> str:
    """A validation error as sentences, without pydantic's URLs."""
    if isinstance(error, UsageError):
        return str(error)
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(lines)
