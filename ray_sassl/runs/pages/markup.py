"""HTML that is put together so that foreign text cannot become a part of it.

A template is a literal of the source (the type checker sees to it), and whatever is put into one is escaped unless it is `Html` already.
Text that went past `element`, such as an f-string around some `Html`, is plain text again, and is escaped where it is put in.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import LiteralString

from ray_sassl.process.console import printable


class Html(str):
    """Text that is HTML. Only `element` and `joined` make it, and what draws SVG."""

    __slots__ = ()


def element(template: LiteralString, *values: object) -> Html:
    """The template with the values in the places of its `{}`, escaped where they are not `Html`."""
    return Html(template.format(*map(_escaped, values)))


def joined(parts: Iterable[object], between: LiteralString = "") -> Html:
    """The parts one after the other, escaped where they are not `Html`."""
    return Html(between.join(map(_escaped, parts)))


def _escaped(value: object) -> str:
    return value if isinstance(value, Html) else html.escape(printable(str(value), keep="\n\t"))
