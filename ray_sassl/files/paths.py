"""Absolute paths, for processes that run in other folders than the command: one rule, and a mark for config fields with paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError


@dataclass(frozen=True)
class LocalPath:
    """Marks a config field with a path or URI, or a tuple of them: `bank: Annotated[str | None, LocalPath()] = None`.

    Attributes:
        other_than: Values of the field that are not paths.
        prefixes: Beginnings of values that are not paths.
    """

    other_than: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


ModelT = TypeVar("ModelT", bound=BaseModel)
T = TypeVar("T")


def absolute(path: str) -> str:
    """The absolute path, with `~` expanded; a URI is unchanged.

    Raises:
        UsageError: it is a URI with a secret in it.
    """
    storage.refuse_secret(path)
    return path if storage.is_uri(path) else os.path.abspath(storage.with_home(path))


def with_absolute_paths(config: ModelT) -> ModelT:
    """The config with `absolute` applied to every field that is marked as a `LocalPath`, in nested configs too."""
    changes = {}
    for name, field in type(config).model_fields.items():
        mark = next((mark for mark in field.metadata if isinstance(mark, LocalPath)), None)
        before = getattr(config, name)
        after = _absolute(before, mark)
        if after != before:
            changes[name] = after
    return config.model_copy(update=changes) if changes else config


def _absolute(value: Any, mark: LocalPath | None) -> Any:
    if isinstance(value, BaseModel):
        return with_absolute_paths(value)
    if isinstance(value, tuple):
        return tuple(_absolute(item, mark) for item in value)
    if mark is None or not isinstance(value, str) or value in mark.other_than or value.startswith(mark.prefixes):
        return value
    return absolute(value)


def check_inside(path: str, folder: str) -> None:
    """See that the path lies in the folder; on this machine's disk after links have been followed.

    A record may name any path, and a directory that comes from somebody else may hold links. A page made from whatever they lead to would
    carry files of its reader to those who are shown the page.

    Raises:
        UsageError: it lies elsewhere.
    """
    local, local_folder = storage.local_path(path), storage.local_path(folder)
    if local is not None and local_folder is not None:
        is_inside = os.path.realpath(local).startswith(os.path.join(os.path.realpath(local_folder), ""))
    else:
        inner, inner_folder = storage.filesystem_of(path)[1], storage.filesystem_of(folder)[1]
        is_inside = local is local_folder is None and inner.startswith(f"{inner_folder.rstrip('/')}/") and ".." not in inner.split("/")
    if not is_inside:
        raise UsageError(f"{path} is not read: it does not lie in {folder}")


def read_inside(read: Callable[[str], T], path: str, folder: str, left_out: list[str]) -> T | None:
    """What is read of a file that lies in the folder; where it lies elsewhere or is damaged None, and the reason is added to `left_out`."""
    try:
        check_inside(path, folder)
        return read(path)
    except UsageError as error:
        left_out.append(str(error))
        return None
