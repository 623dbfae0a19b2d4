"""Problems of manifests that are not Ray's, but stand beside those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_sassl.cluster.findings import Finding, at, mapping, sequence
from ray_sassl.cluster.machines import MACHINES
from ray_sassl.cluster.sizes import INSTANCE_TYPE

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
"""The label of a job that names its LocalQueue."""
GROUP = "ray-sassl/group"
OUTSIDE = ("LoadBalancer", "NodePort")
"""Types of services that are reached from outside the cluster."""
_OF_THE_CLUSTER = ("ClusterQueue", "ResourceFlavor", "NodePool", "EC2NodeClass", "NodeClass")


def other_kinds(manifest: dict[str, Any]) -> Iterator[Finding]:
    """The findings of one manifest of a kind that is not Ray's."""
    kind = manifest.get("kind")
    if kind in _OF_THE_CLUSTER and at(manifest, "metadata.namespace") is not None:
        yield Finding("metadata.namespace", f"a {kind} belongs to the whole cluster, which refuses one with a namespace")
    match kind:
        case "Secret":
            yield Finding("kind", "a Secret in a file is not secret; let the operator make the token, or make it with kubectl")
        case "NetworkPolicy":
            yield from _policy(manifest)
        case "PodDisruptionBudget":
            if at(manifest, "spec.maxUnavailable") is not None:
                yield Finding("spec.maxUnavailable", "is not allowed for pods that an operator owns, and protects none; give minAvailable")
        case "Service":
            if at(manifest, "spec.type") in OUTSIDE:
                yield Finding("spec.type", "opens the service to outside the cluster; use kubectl port-forward")
        case "NodePool":
            yield from _pool(manifest)
        case "ClusterQueue":
            yield from _queue(manifest)


def machines_of(pool: dict[str, Any]) -> list[str]:
    """The types of machines that a NodePool of Karpenter names."""
    return [
        str(value)
        for item in sequence(at(pool, "spec.template.spec.requirements"))
        if mapping(item).get("key") == INSTANCE_TYPE and mapping(item).get("operator") == "In"
        for value in sequence(mapping(item).get("values"))
    ]


def _policy(manifest: dict[str, Any]) -> Iterator[Finding]:
    for number, rule in enumerate(sequence(at(manifest, "spec.ingress"))):
        where = f"spec.ingress[{number}]"
        peers = [mapping(peer) for peer in sequence(mapping(rule).get("from"))]
        if not peers:
            yield Finding(where, "lets everybody in; say from whom")
        elif any(at(peer, "ipBlock.cidr") in ("0.0.0.0/0", "::/0") for peer in peers):
            yield Finding(where, "lets every address in")
        for place, peer in enumerate(peers):
            if peer.get("namespaceSelector") == {}:
                yield Finding(
                    f"{where}.from[{place}].namespaceSelector",
                    "lets pods of all namespaces in, and a pod may give itself any label; name the namespace (kubernetes.io/metadata.name)",
                )


def _pool(manifest: dict[str, Any]) -> Iterator[Finding]:
    if (
        GROUP in mapping(at(manifest, "spec.template.metadata.labels"))
        and at(manifest, "spec.disruption.consolidationPolicy") != "WhenEmpty"
    ):
        yield Finding(
            "spec.disruption.consolidationPolicy",
            "is not WhenEmpty, so Karpenter ends pods to pack them onto fewer machines; Ray's autoscaler ends those that are idle",
        )
    known = [MACHINES[name] for name in machines_of(manifest) if name in MACHINES]
    if known and all(machine.gpus for machine in known) and not at(manifest, "spec.template.spec.taints"):
        yield Finding("spec.template.spec.taints", "are missing: pods that need no GPU may take up its machines; add nvidia.com/gpu")


def _queue(manifest: dict[str, Any]) -> Iterator[Finding]:
    for number, group in enumerate(sequence(at(manifest, "spec.resourceGroups"))):
        covered = sequence(mapping(group).get("coveredResources"))
        for place, flavor in enumerate(sequence(mapping(group).get("flavors"))):
            names = [mapping(item).get("name") for item in sequence(mapping(flavor).get("resources"))]
            if names != covered:
                yield Finding(
                    f"spec.resourceGroups[{number}].flavors[{place}].resources",
                    f"must be those of coveredResources, in their order ({', '.join(map(str, covered))})",
                )
