"""Writes numbers of nodes into a cluster definition, and keeps its comments and layout."""

from __future__ import annotations

from typing import Any

import yaml

from ray_sassl.cluster.findings import mapping, sequence
from ray_sassl.cluster.groups import is_launcher, ray_cluster_spec
from ray_sassl.files.safe_yaml import load_documents
from ray_sassl.process.errors import UsageError

_NULL = "tag:yaml.org,2002:null"


def write_counts(text: str, source: str, counts: dict[str, int]) -> str:
    """The definition with these maximum numbers of nodes in each group; a group without autoscaling gets exactly this number.

    Args:
        source: Name of the text, for messages.
        counts: Numbers of nodes by the group's name.

    Raises:
        UsageError: the file defines no cluster, has not all of these groups, or lacks the fields to set.
    """
    documents = load_documents(text, source)
    changes = []
    for number, document in enumerate(documents):
        if is_launcher(document):
            changes += [((number, *path), value) for path, value in _launcher_changes(document, source, counts)]
        elif ray_cluster_spec(document):
            changes += [((number, *path), value) for path, value in _kuberay_changes(document, source, counts)]
    if not changes:
        raise UsageError(f"{source} defines no cluster whose groups are called {', '.join(counts)}")
    # Like `load_documents`, this leaves out documents that are empty or null.
    nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None and node.tag != _NULL]
    edits = []
    for (number, *path), value in changes:
        scalar = _scalar(nodes[number], path, source)
        edits.append((scalar.start_mark.index, scalar.end_mark.index, str(value)))
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _launcher_changes(config: dict[str, Any], source: str, counts: dict[str, int]) -> list[tuple[list[Any], int]]:
    types = mapping(config.get("available_node_types"))
    _refuse_unknown(counts, types, source)
    changes: list[tuple[list[Any], int]] = []
    for name, count in counts.items():
        changes.append((["available_node_types", name, "max_workers"], count))
        if mapping(types[name]).get("min_workers", 0) > count:
            changes.append((["available_node_types", name, "min_workers"], count))
    others = [name for name in types if name not in counts and name != config.get("head_node_type")]
    total = sum(counts.values()) + sum(mapping(types[name]).get("max_workers", 0) for name in others)
    return [*changes, (["max_workers"], total)]


def _kuberay_changes(manifest: dict[str, Any], source: str, counts: dict[str, int]) -> list[tuple[list[Any], int]]:
    root = {"RayCluster": ["spec"], "RayJob": ["spec", "rayClusterSpec"]}.get(manifest["kind"])
    if root is None:
        raise UsageError(f"{source}: numbers of nodes are written into a RayCluster or a RayJob, not into a {manifest['kind']}")
    spec = ray_cluster_spec(manifest)
    groups = {str(mapping(group).get("groupName")): (number, group) for number, group in enumerate(sequence(spec.get("workerGroupSpecs")))}
    _refuse_unknown(counts, groups, source)
    changes: list[tuple[list[Any], int]] = []
    for name, count in counts.items():
        number, group = groups[name]
        path = [*root, "workerGroupSpecs", number]
        if spec.get("enableInTreeAutoscaling") is not True:
            changes += [([*path, field], count) for field in ("replicas", "minReplicas", "maxReplicas")]
            continue
        changes.append(([*path, "maxReplicas"], count))
        changes += [([*path, field], count) for field in ("replicas", "minReplicas") if group.get(field, 0) > count]
    return changes


def _refuse_unknown(counts: dict[str, int], known: dict[str, Any], source: str) -> None:
    if missing := [name for name in counts if name not in known]:
        raise UsageError(f"{source} has no group {', '.join(missing)}; its groups are {', '.join(known)}")


def _scalar(node: yaml.Node, path: list[Any], source: str) -> yaml.ScalarNode:
    """The scalar at the path, with its place in the text."""
    for name in path:
        if isinstance(name, int) and isinstance(node, yaml.SequenceNode):
            node = node.value[name]
        elif isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if getattr(key, "value", None) == name]
            if not found:
                raise UsageError(f"{source} does not set {'.'.join(map(str, path))}; add it, so that it can be written")
            node = found[0]
        else:
            raise _no_place(path, source)
    if not isinstance(node, yaml.ScalarNode):
        raise _no_place(path, source)
    return node


def _no_place(path: list[Any], source: str) -> UsageError:
    return UsageError(f"{source}: there is no number to replace at {'.'.join(map(str, path))}")
