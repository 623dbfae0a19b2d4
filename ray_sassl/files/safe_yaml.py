"""YAML from people and from files: by the safe loader, of bounded size, with each key once.

The safe loader makes nothing but numbers, texts, lists and mappings. What is left to guard against is size: of the text, and of what a few
lines of aliases can stand for. This module imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader

from ray_sassl.files import storage
from ray_sassl.plugins import UsageError

MAX_BYTES = 1 << 20
"""Of a config, a cluster definition or a table of prices; the largest of ours has a few kilobytes."""
MAX_DEPTH = 100
"""Lists and mappings within each other."""
MAX_NODES = 100_000
"""Values in a document, those behind aliases counted every time."""


class _Loader(SafeLoader):  # pyright: ignore[reportGeneralTypeIssues]
    """The safe loader, in C where PyYAML has it, that refuses a mapping with the same key twice."""

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


def load_documents(text: str, source: str, *, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES) -> list[Any]:
    """The documents of a YAML text, empty ones left out.

    Args:
        source: What the text is, for the message.

    Raises:
        UsageError: too large, not YAML, a tag that would make an object, or a key twice in one mapping.
    """
    if len(text) > max_bytes or len(text.encode()) > max_bytes:
        raise UsageError(f"{source} has {len(text):,} characters of YAML; at most {max_bytes:,} bytes are read")
    try:
        _refuse_depth(text, source)
        return [document for document in _documents(text, source, max_nodes) if document is not None]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # what cannot be a date or a number is a ValueError of PyYAML's
        raise UsageError(f"{source} is not YAML that can be read: {error}") from error


def load_document(text: str, source: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The one document of a YAML text, or None where it is empty.

    Raises:
        UsageError: as `load_documents`, or there are several.
    """
    documents = load_documents(text, source, max_bytes=max_bytes)
    if len(documents) > 1:
        raise UsageError(f"{source} holds {len(documents)} YAML documents; one is wanted")
    return documents[0] if documents else None


def load_file(path: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The one document of a YAML file, local or at a URI, or None where it is empty.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: as `load_document`, or the file is too large or not UTF-8; a file that is too large is not read.
    """
    return load_document(storage.read_text(path, max_bytes), path, max_bytes=max_bytes)


def _refuse_depth(text: str, source: str) -> None:
    """The parser of events is a loop; the loader above it calls itself, in C, where too deep a text ends the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{source} is nested more than {MAX_DEPTH} deep")


def _documents(text: str, source: str, max_nodes: int) -> Iterator[Any]:
    """The documents. Before one is made, its values are counted: an alias, also one that is merged (`<<`), stands for all that it names."""
    loader = _Loader(text)
    try:
        left = max_nodes
        while loader.check_node():
            node = loader.get_node()
            left -= _count(node, {}, max_nodes)
            if left < 0:
                raise UsageError(f"{source} stands for more than {max_nodes:,} values, or for itself")
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node | None, counts: dict[int, int], most: int) -> int:
    """Values below a node with itself, `most` + 1 where there are more or the node holds itself.

    Args:
        counts: Those that are known, by the node's id; 0 for a node whose own values are being counted.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = 0
        children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = min(1 + sum(_count(child, counts, most) for child in children), most + 1)
    return counts[id(node)] or most + 1
