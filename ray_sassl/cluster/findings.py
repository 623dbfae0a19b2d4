"""What a check has found, and looking into trees of YAML that may be anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Finding:
    """One thing to know about a definition.

    Attributes:
        where: The path within the file, such as `spec.workerGroupSpecs[1].maxReplicas`.
        text: What is wrong, and what to do.
        is_note: Worth a look, and no reason to refuse the file.
    """

    where: str
    text: str
    is_note: bool = False


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is a mapping, else an empty one: what is of another type is found by the schema."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def at(tree: Any, path: str) -> Any:
    """What is at `a.b.c`, or None."""
    for name in path.split("."):
        tree = mapping(tree).get(name)
    return tree


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether the value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)
