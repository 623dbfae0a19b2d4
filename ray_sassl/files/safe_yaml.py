"""YAML from users and files: with the safe loader, bounded size and no duplicate keys.

The safe loader makes only numbers, texts, lists and mappings. The remaining risk is size: of the text, and of what a few lines of aliases
can expand to. This module imports neither torch nor Ray.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader

from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

MAX_BYTES = 1 << 20
"""Maximum size of a config, a cluster definition or a table of prices; our largest ones have a few kilobytes."""
MAX_DEPTH = 100
"""Maximum nesting of lists and mappings."""
MAX_NODES = 100_000
"""Maximum number of values in a document; values behind aliases are counted every time."""


class _Loader(SafeLoader):  # pyright: ignore[reportGeneralTypeIssues]
    """The safe loader (in C if PyYAML has it) that refuses duplicate keys in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number; what has a `:` is a text, and not a number to the base of 60 as in YAML 1.1 (`1:30` would be 90)."""
        if ":" in node.value:
            return node.value
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


class _OwnLoader(_Loader):
    """The loader of our own documents: a whole number that begins with 0 is refused. YAML reads `010` as 8, and Kubernetes wants that."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        refuse_leading_zero(node.value)
        return super().construct_number(node)


for _class in (_Loader, _OwnLoader):
    for _kind in ("int", "float"):
        _class.add_constructor(f"tag:yaml.org,2002:{_kind}", _class.construct_number)


def refuse_leading_zero(text: str) -> None:
    """Check that a number is not one that some people and programs read as octal.

    Raises:
        UsageError: it is a whole number that begins with 0, such as 010.
    """
    if re.fullmatch(r"[-+]?0[0-9_]+", text):
        plain = re.sub(r"^([-+]?)[0_]+(?=.)", r"\1", text)
        raise UsageError(f"the number {text} begins with 0, as octal numbers do; write {plain}")


def load_documents(text: str, source: str, *, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES, is_own: bool = False) -> list[Any]:
    """The documents of a YAML text, without empty ones.

    Args:
        source: Name of the text, for messages.
        is_own: Whether it is of a kind of ours, in which `010` is refused, and not one of Kubernetes or Ray, in which it is 8.

    Raises:
        UsageError: too large, not YAML, a tag that would make an object, or a key twice in one mapping.
    """
    if len(text) > max_bytes or len(text.encode(errors="surrogatepass")) > max_bytes:
        raise UsageError(f"{source} has {len(text):,} characters of YAML; at most {max_bytes:,} bytes are read")
    try:
        _refuse_depth(text, source)
        return [document for document in _documents(text, source, max_nodes, _OwnLoader if is_own else _Loader) if document is not None]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML raises ValueError for an invalid date or number
        raise UsageError(f"{source} is not valid YAML: {error}") from error


def load_document(text: str, source: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The single document of a YAML text, or None if it is empty.

    Raises:
        UsageError: as `load_documents`, or there are several.
    """
    documents = load_documents(text, source, max_bytes=max_bytes, is_own=True)
    if len(documents) > 1:
        raise UsageError(f"{source} has {len(documents)} YAML documents; only one is allowed")
    return documents[0] if documents else None


def load_file(path: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The single document of a YAML file, local or at a URI, or None if it is empty.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: as `load_document`, or the file is too large or not UTF-8; a file that is too large is not read.
    """
    return load_document(storage.read_text(path, max_bytes), path, max_bytes=max_bytes)


def _refuse_depth(text: str, source: str) -> None:
    """Refuse deeply nested text. The event parser is a loop, but the loader is recursive, in C, where too deep a text kills the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{source} is nested more than {MAX_DEPTH} deep")


def _documents(text: str, source: str, max_nodes: int, loader_class: type[_Loader]) -> Iterator[Any]:
    """The documents. Before one is constructed, its values are counted; an alias, even a merged one (`<<`), counts as all its values."""
    loader = loader_class(text)
    try:
        left = max_nodes
        while loader.check_node():
            node = loader.get_node()
            left -= _count(node, {}, max_nodes)
            if left < 0:
                raise UsageError(f"{source} expands to more than {max_nodes:,} values, or contains itself")
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node | None, counts: dict[int, int], most: int) -> int:
    """The number of values of a node with itself; `most` + 1 if there are more or the node contains itself.

    Args:
        counts: Known numbers by the node's id; 0 for a node that is being counted.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = 0
        children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = min(1 + sum(_count(child, counts, most) for child in children), most + 1)
    return counts[id(node)] or most + 1
