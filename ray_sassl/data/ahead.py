"""Work that is started before its results are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_Started = TypeVar("_Started")


def ahead(start: Callable[[_Item], _Started], items: Iterable[_Item], num: int) -> Iterator[_Started]:
    """`start(item)`, such as a future, of each item in order; when one is returned, up to `num` later ones have been started."""
    waiting: deque[_Started] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > num:
            yield waiting.popleft()
    yield from waiting
