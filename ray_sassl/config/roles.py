"""The parts of a config by the roles of its fields: those that shape the weights, and those that a resumed run may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import Role


def role_of(field: FieldInfo) -> Role:
    """The field's role; a field without a mark shapes the weights and must not change."""
    return next((mark for mark in field.metadata if isinstance(mark, Role)), Role())


def shaping_part(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config's tree that shape the weights, without the seed: equal for two seeds of one recipe."""
    return _part(tree, ExperimentConfig, lambda role: role.shapes_weights)


def fixed_part(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config's tree that a resumed run must not change."""
    return _part(tree, ExperimentConfig, lambda role: not role.resume_may_change)


def changeable_paths(model: type[BaseModel] = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    """The paths of the fields that a resumed run may change; for a part that may change as a whole, only its path."""
    for name, field in model.model_fields.items():
        if role_of(field).resume_may_change:
            yield prefix + name
        elif inner := _model_of(field):
            yield from changeable_paths(inner, f"{prefix}{name}.")


def differing_paths(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths at which two trees differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        return [found for name in names for found in differing_paths(before.get(name), after.get(name), f"{path}.{name}" if path else name)]
    return [] if before == after else [path]


def _part(tree: Mapping[str, Any], model: type[BaseModel], wanted: Callable[[Role], bool]) -> dict[str, Any]:
    """The tree without the model's fields whose role is not wanted. Fields that the model does not know, such as a plug-in's, stay."""
    part = {}
    for name, value in tree.items():
        field = model.model_fields.get(name)
        if field is not None and not wanted(role_of(field)):
            continue
        inner = _model_of(field) if field is not None else None
        part[name] = _part(value, inner, wanted) if inner is not None and isinstance(value, dict) else value
    return part


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
