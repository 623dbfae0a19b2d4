"""Inputs for fuzzing: whole files of every kind that the product reads, changed as damage or a stranger would change them.

A case is a folder, as a mapping from names to contents. `changed` draws all that it does from the generator that it is given. Formats with
checks over their content (tar's header sums, the length before a safetensors header, the digests of a checkpoint) are repaired after a
change as often as not, so that what lies behind the check is reached too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

from ray_sassl.files.safe_yaml import load_documents
from ray_sassl.train.checkpoint_folder import MANIFEST, Manifest

Files = dict[str, bytes]

_NUMBERS = (0, 1, -1, 2, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63))
_VALUES: tuple[Any, ...] = (
    None, True, False, *_NUMBERS, 0.5, -1.5, 1e308, float("nan"), float("inf"), "", "x", "a/b", "../../etc/passwd", "/dev/zero", "[/x]",
    "\u2028", "\x1b]0;x\x07", "\x00", "ü" * 50, "9" * 5000, "x3://bucket/x", "<script>alert(1)</script>", "$x_1^2$", [], {}, [[]], [None],
    {"": None}, [1, "a", None], {"step": "x"}, {"value": {}}, {"a": {"b": {"c": 1}}}, ["x"] * 200,
)  # fmt: skip
_TOKENS = (
    b"{", b"}", b"[" * 1000, b"]", b'"', b"'", b":", b",", b"\n", b"\r", b"\0", b"\xff\xfe", b"\xe2\x80\xa8", b"\xc2\x85", b"null", b"NaN",
    b"-1", b"1e999", b"9" * 400, b"0x_", b"2024-02-30", b"!!python/object/apply:os.system [x]", b"&a [*a]", b"<<: *a", b"*a",
    b"? [a]\n: b", b"---\n", b"..", b"/", b"%", b"\\", b"\x1b[2J", b"<", b"&", b"#", b"|", b"- ", b"  ", b"\t", b"{{", b"$", b"_",
)  # fmt: skip
_TAR_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1), "link": (157, 100), "magic": (257, 8),
    "prefix": (345, 155),
}  # fmt: skip
_BLOCK = 512


def changed(files: Files, draw: random.Random) -> Files:
    """The files with one of them changed, and in one case of eight one removed or put in the place of another."""
    files = dict(files)
    name = draw.choice(sorted(files))
    if draw.random() < 0.06 and len(files) > 1:
        del files[name]
    elif draw.random() < 0.06 and len(files) > 1:
        files[name] = files[draw.choice(sorted(files))]
    else:
        files[name] = _CHANGES.get(name.rpartition(".")[2], _bytes)(files[name], draw)
    return _resigned(files, name) if draw.random() < 0.5 else files


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four changes that know nothing of the format."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(data)) if draw.random() < 0.6 else draw.randint(0, min(len(data), 200))
        length = draw.choice((1, 1, 2, 4, 8, 16, 100, 1000))
        kind = draw.randrange(9)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place : place + 1] = bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            data[place : place + width] = (draw.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place:place] = draw.randbytes(length)
        elif kind == 6:
            del data[place:]
        elif kind == 7:
            other = draw.randint(0, len(data))
            data[place : place + length] = data[other : other + length]
        else:
            data[place:place] = draw.choice(_TOKENS)
    return bytes(data)


def _changed_tree(tree: Any, draw: random.Random) -> Any:
    """The tree with one node replaced, removed, renamed or doubled."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice(sorted(tree, key=str))
        rest = dict(tree)
        kind = draw.random()
        if kind < 0.1:
            del rest[key]
        elif kind < 0.2:
            rest[str(draw.choice(_VALUES))[:200]] = rest.pop(key)
        else:
            rest[key] = _changed_tree(tree[key], draw)
        return rest
    if isinstance(tree, list) and tree and draw.random() < 0.85:
        place = draw.randrange(len(tree))
        kind = draw.random()
        if kind < 0.1:
            return tree[:place] + tree[place + 1 :]
        if kind < 0.2:
            return tree[:place] + [tree[place]] * draw.choice((2, 100)) + tree[place:]
        return [*tree[:place], _changed_tree(tree[place], draw), *tree[place + 1 :]]
    if isinstance(tree, str) and tree and draw.random() < 0.4:
        place = draw.randint(0, len(tree))
        return tree[:place] + draw.choice(_TOKENS).decode(errors="replace") + tree[place + draw.randint(0, 3) :]
    return draw.choice(_VALUES)


def _json(content: bytes, draw: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):  # changed before
        return _bytes(content, draw)
    return _bytes(content, draw) if draw.random() < 0.3 else json.dumps(_changed_tree(tree, draw)).encode("utf-8", "surrogatepass")


def _json_lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines()
    if draw.random() < 0.3 or not lines:
        return _bytes(content, draw)
    place = draw.randrange(len(lines))
    lines[place] = _json(lines[place], draw)
    return b"\n".join(lines) + b"\n" * (draw.random() < 0.8)


def _yaml(content: bytes, draw: random.Random) -> bytes:
    try:
        documents = load_documents(content.decode(), "the input")
    except ValueError:  # changed before
        documents = []
    if draw.random() < 0.4 or not documents:
        return _bytes(content, draw)
    place = draw.randrange(len(documents))
    documents[place] = _changed_tree(documents[place], draw)
    return yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


def _tar(content: bytes, draw: random.Random) -> bytes:
    """A field of a header changed; the sums of the headers are made right as often as not."""
    if draw.random() < 0.3:
        return _bytes(content, draw)
    data = bytearray(content)
    headers = [place for place in range(0, len(data) - _BLOCK + 1, _BLOCK) if data[place + 257 : place + 262] == b"ustar"]
    if not headers:
        return _bytes(content, draw)
    place = draw.choice(headers)
    start, width = _TAR_FIELDS[draw.choice(sorted(_TAR_FIELDS))]
    number = draw.choice(_NUMBERS)
    data[place + start : place + start + width] = draw.choice((
        b"%0*o" % (width - 1, abs(number)),
        b"\x80" + (number % 2 ** (8 * max(1, width - 1))).to_bytes(max(1, width - 1), "big"),
        draw.choice(_TOKENS),
        bytes(draw.choice(b"01234567xgLKSVDMN\0") for _ in range(width)),
        b"-1",
        draw.randbytes(width),
    ))[:width].ljust(width, b"\0")  # fmt: skip
    if draw.random() < 0.8:
        header = data[place : place + _BLOCK]
        header[148:156] = b" " * 8
        data[place + 148 : place + 156] = b"%06o\0 " % sum(header)
    return bytes(data)


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    if draw.random() < 0.4 or end > len(content):
        return _bytes(content, draw)
    header = _json(content[8:end], draw)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _resigned(files: Files, name: str) -> Files:
    """A checkpoint whose manifest says what its files are now, as whoever can write them could have it say."""
    folder, _, own = name.rpartition("/")
    if "/step-" not in f"/{folder}" or own == MANIFEST or f"{folder}/{MANIFEST}" not in files:
        return files
    try:
        old = json.loads(files[f"{folder}/{MANIFEST}"])
        inside = {each: files[f"{folder}/{each}"] for each in old["files"]}
    except (ValueError, KeyError, TypeError):
        return files
    return files | {f"{folder}/{MANIFEST}": Manifest.describing(old["step"], inside).encode()}


_CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "tar": _tar,
    "safetensors": _safetensors,
}
