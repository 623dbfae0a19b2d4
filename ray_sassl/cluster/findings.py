"""Findings of checks, and access to YAML trees whose types are unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Finding:
    """One problem of a definition.

    Attributes:
        where: The path within the file, such as `spec.workerGroupSpecs[1].maxReplicas`.
        text: What is wrong, and what to do.
        is_note: Whether it is only a hint, and no reason to refuse the file.
    """

    where: str
    text: str
    is_note: bool = False


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one: the schema finds values of another type."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def at(tree: Any, path: str) -> Any:
    """The value at `a.b.c`, or None."""
    for name in path.split("."):
        tree = mapping(tree).get(name)
    return tree


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether the value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
