"""Damage to files of JSON, JSON lines and YAML: torn, foreign, of another shape, too deep, too large."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**63, 10**400, 1e300, -1e308, float("nan"), float("inf"), 1e-320, 0.5),
    *("", "x", "1", "$\\frac{$", "\x00", "\ud800", "\u2028", "a" * 5000, "../../x", "<b>"),
    *([], {}, [1, [2]], {"name": 3}, {"value": "x"}, [None], [{}], {"": {}}, {"top1": {"value": 10**400}}),
)
"""What stands in the place of a value."""

CONTENTS = (
    *(b"", b"\n", b"3\n", b"null", b"[]", b"{}", b'"x"', b"\xff\xfe\x00", b"{" * 200, b"[" * 100_000, b'{"a":' * 20_000),
    *(b'{"step": 1' + b"0" * 6000 + b"}", b"nan", b"- a\n- b\n", b"? [1]\n: 2\n", b"a: 0x" + b"f" * 6000, b"2024-01-01: 2024-02-30\n"),
    *(b"1: {2: 3}\n2: 3\n", b"!!set {a, b}\n", b"a: !!binary aGk=\n", b"\x89PNG\r\n\x1a\n", b"PAR1"),
)
"""What stands in the place of a file."""


def damaged(content: bytes, name: str, rng: random.Random) -> bytes:
    """A file's content as a crash, another program or a stranger may have left it."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(CONTENTS)
    if kind == 1:
        cut = rng.randrange(len(content) + 1)
        return content[:cut] + rng.choice((b"", b"\x00\xff", content[:40]))
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.splitlines()]
        number = rng.randrange(len(lines))
        lines[number] = _changed(lines[number], rng)
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    if name.endswith(".json"):
        return json.dumps(_changed(json.loads(content), rng)).encode()
    if name.endswith(".yaml"):
        return yaml.safe_dump(_changed(yaml.safe_load(content), rng)).encode()
    place = rng.randrange(len(content) + 1)
    return content[:place] + bytes(rng.randrange(256) for _ in range(8)) + content[place + 8 :]


def _changed(tree: Any, rng: random.Random) -> Any:
    """The tree with one to three of its values, or of its names, replaced."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places or rng.random() < 0.05:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        value = copy.deepcopy(rng.choice(VALUES))
        if isinstance(holder, dict) and rng.random() < 0.2:
            holder[rng.choice(("x", "$", "step", "name", "\x1b"))] = holder.pop(key)
        elif isinstance(holder, dict) and rng.random() < 0.1:
            del holder[key]
        else:
            holder[key] = value
    return tree


def _places(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        for key, value in list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)):
            yield tree, key
            yield from _places(value)
