"""The node groups of a cluster definition: the possible numbers of nodes, and their resources."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_sassl.cluster.findings import at, is_whole, mapping, sequence

_GPU = "nvidia.com/gpu"
_GPU_GROUPS = ("stylize", "train")
_GPU_NAMES = re.compile(rf"(^|[^a-z])(gpu|{'|'.join(_GPU_GROUPS)})([^a-z]|$)", re.IGNORECASE)
_SUFFIXES = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


SPECS = {
    "RayCluster": "spec",
    "RayJob": "spec.rayClusterSpec",
    "RayService": "spec.rayClusterConfig",
    "RayCronJob": "spec.jobTemplate.rayClusterSpec",
}
"""The path of the `RayClusterSpec` in each kind of manifest."""
JOBS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}
"""The path of the `RayJobSpec` in each kind of manifest that has one."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind.

    Attributes:
        name: Name of the group.
        is_head: Whether it is the head, which is always one node.
        min_nodes, max_nodes: Bounds of the number of nodes.
        cpus, gpus: Resources of each node that Ray may use; None if the definition does not say, so Ray detects them on the node.
    """

    name: str
    is_head: bool
    min_nodes: int
    max_nodes: int
    cpus: float | None
    gpus: float


def offered_by(groups: Iterable[NodeGroup]) -> dict[str, float]:
    """The CPUs and GPUs of the cluster at its largest; groups that do not define their nodes' resources count as none."""
    counted = [(1 if group.is_head else group.max_nodes, group) for group in groups]
    return {
        "CPU": sum(count * (group.cpus or 0.0) for count, group in counted),
        "GPU": sum(count * group.gpus for count, group in counted),
    }


def groups_of(document: Any) -> list[NodeGroup]:
    """The groups of a launcher file, a RayCluster or a RayJob."""
    if is_launcher(document):
        return launcher_groups(document)
    return cluster_groups(ray_cluster_spec(document))


def is_labeled_for_gpus(group: Any) -> bool:
    """Whether the group's label is that of stylizers or training workers on GPUs."""
    return mapping(mapping(group).get("labels")).get("ray-sassl/group") in _GPU_GROUPS


def is_named_for_gpus(name: str) -> bool:
    """Whether a word of the name says that the group has GPUs."""
    return _GPU_NAMES.search(name) is not None


def is_launcher(document: Any) -> bool:
    """Whether the document is for `ray up`."""
    return "provider" in mapping(document) and "kind" not in document


def ray_cluster_spec(manifest: Any) -> dict[str, Any]:
    """The `RayClusterSpec` in a RayCluster, RayJob, RayService or RayCronJob; empty if there is none."""
    path = SPECS.get(str(mapping(manifest).get("kind")))
    return mapping(at(manifest, path)) if path is not None else {}


def launcher_groups(config: dict[str, Any]) -> list[NodeGroup]:
    """The groups of a launcher file; a group without `max_workers` has the file's."""
    overall = config.get("max_workers")
    groups = []
    for name, node_type in mapping(config.get("available_node_types")).items():
        is_head = name == config.get("head_node_type")
        resources = mapping(mapping(node_type).get("resources"))
        most = mapping(node_type).get("max_workers", 0 if is_head else overall)
        least = mapping(node_type).get("min_workers", 0)
        groups.append(
            NodeGroup(str(name), is_head, _count(least), _count(most), amount(resources.get("CPU")), amount(resources.get("GPU")) or 0.0)
        )
    return groups


def cluster_groups(spec: dict[str, Any]) -> list[NodeGroup]:
    """The groups of a `RayClusterSpec`; a pod's resources are those of `rayStartParams`, else its limits."""
    head = mapping(spec.get("headGroupSpec"))
    groups = [NodeGroup("head", True, 1, 1, *_pod_offers(head))] if head else []
    for group in sequence(spec.get("workerGroupSpecs")):
        least, most = mapping(group).get("minReplicas", 0), mapping(group).get("maxReplicas", 0)
        hosts = mapping(group).get("numOfHosts", 1)
        per_replica = hosts if is_whole(hosts) else 1
        offers = _pod_offers(mapping(group))
        groups.append(NodeGroup(str(group.get("groupName")), False, _count(least) * per_replica, _count(most) * per_replica, *offers))
    return groups


def ray_containers(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The first container of the group's pods, in which KubeRay starts Ray; empty if there is none."""
    containers = sequence(at(group, "template.spec.containers"))
    return [mapping(containers[0])] if containers else []


def _pod_offers(group: dict[str, Any]) -> tuple[float | None, float]:
    params = mapping(group.get("rayStartParams"))
    cpus, gpus = amount(params.get("num-cpus")), amount(params.get("num-gpus"))
    for container in ray_containers(group):
        limits, requests = mapping(at(container, "resources.limits")), mapping(at(container, "resources.requests"))
        cpus = amount(limits.get("cpu", requests.get("cpu"))) if cpus is None else cpus
        gpus = amount(limits.get(_GPU)) if gpus is None else gpus
    return cpus, gpus or 0.0


def _count(value: Any) -> int:
    return value if is_whole(value) else 0


def amount(quantity: Any) -> float | None:
    """A number, or a quantity of Kubernetes such as `500m`; None for anything else."""
    match = re.fullmatch(r"([+-]?[0-9.]+)([a-zA-Z]*)", str(quantity)) if quantity is not None else None
    if match is None or match[2] not in _SUFFIXES:
        return None
    try:
        return float(match[1]) * _SUFFIXES[match[2]]
    except ValueError:
        return None
