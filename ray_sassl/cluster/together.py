"""Whether manifests that are applied together fit: jobs and their queues, pods and their pools of nodes, metrics and who collects them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_sassl.cluster.findings import Finding, at, is_whole, mapping, sequence
from ray_sassl.cluster.groups import JOBS, SPECS, amount
from ray_sassl.cluster.machines import MACHINES
from ray_sassl.cluster.others import GROUP, KUEUE_QUEUE, machines_of
from ray_sassl.cluster.sizes import fits

_METRICS = "metrics"


@dataclass(frozen=True)
class _Pods:
    """Equal pods of a Ray cluster or of what submits to it; `where` is the path of their template."""

    where: str
    count: int
    template: dict[str, Any]

    @property
    def selector(self) -> dict[str, Any]:
        """The labels that their node must have."""
        return mapping(at(self.template, "spec.nodeSelector"))

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers of a pod."""
        return [mapping(container) for container in sequence(at(self.template, "spec.containers"))]

    def asked(self) -> dict[str, float]:
        """What one pod asks for, as Kueue reckons: requests, or else limits."""
        total: dict[str, float] = defaultdict(float)
        for container in self.containers:
            asked = mapping(at(container, "resources.limits")) | mapping(at(container, "resources.requests"))
            for kind, value in asked.items():
                total[kind] += amount(value) or 0.0
        return total


def check_together(documents: list[Any]) -> Iterator[tuple[int, Finding]]:
    """Findings with the number of the document that each is about; what no document defines is taken to be in the cluster already."""
    manifests = [mapping(document) for document in documents]
    for number, manifest in enumerate(manifests):
        pods = _pods_of(manifest)
        for finding in [*_queued(manifest, manifests, pods), *_pooled(manifests, pods), *_scraped(manifests, pods)]:
            yield number, finding
        for finding in _flavors(manifest, manifests):
            yield number, finding


def _pods_of(manifest: dict[str, Any]) -> list[_Pods]:
    kind = str(manifest.get("kind"))
    if kind not in SPECS:
        return []
    prefix, spec = SPECS[kind], mapping(at(manifest, SPECS[kind]))
    found = [_Pods(f"{prefix}.headGroupSpec.template", 1, mapping(at(spec, "headGroupSpec.template")))]
    for number, group in enumerate(sequence(spec.get("workerGroupSpecs"))):
        replicas, hosts = mapping(group).get("replicas", 1), mapping(group).get("numOfHosts", 1)
        count = replicas * hosts if is_whole(replicas) and is_whole(hosts) else 0
        found.append(_Pods(f"{prefix}.workerGroupSpecs[{number}].template", count, mapping(at(group, "template"))))
    if kind in JOBS and at(manifest, f"{JOBS[kind]}.submissionMode") in (None, "K8sJobMode"):
        path = f"{JOBS[kind]}.submitterPodTemplate"
        found.append(_Pods(path, 1, mapping(at(manifest, path))))
    return [pods for pods in found if pods.template]


def _of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {str(at(manifest, "metadata.name")): manifest for manifest in manifests if manifest.get("kind") == kind}


def _flavors(manifest: dict[str, Any], manifests: list[dict[str, Any]]) -> Iterator[Finding]:
    known = _of_kind(manifests, "ResourceFlavor")
    if manifest.get("kind") != "ClusterQueue" or not known:
        return
    for number, group in enumerate(sequence(at(manifest, "spec.resourceGroups"))):
        for place, flavor in enumerate(sequence(mapping(group).get("flavors"))):
            if mapping(flavor).get("name") not in known:
                where = f"spec.resourceGroups[{number}].flavors[{place}].name"
                yield Finding(where, f"there is no ResourceFlavor {mapping(flavor).get('name')} beside the queue, so it admits nothing")


def _queued(manifest: dict[str, Any], manifests: list[dict[str, Any]], pods: list[_Pods]) -> Iterator[Finding]:
    """Kueue admits a job when all its pods fit into the quotas at once, and never if they cannot."""
    name = mapping(at(manifest, "metadata.labels")).get(KUEUE_QUEUE)
    queues = _of_kind(manifests, "LocalQueue")
    if name is None or not pods or not queues:
        return
    where = f"metadata.labels.{KUEUE_QUEUE}"
    if (queue := queues.get(str(name))) is None:
        yield Finding(where, f"there is no LocalQueue {name} beside the job; there is {', '.join(queues)}")
        return
    if at(queue, "metadata.namespace") != at(manifest, "metadata.namespace"):
        yield Finding(where, f"the LocalQueue {name} is in another namespace ({at(queue, 'metadata.namespace')})")
    cluster_queue = _of_kind(manifests, "ClusterQueue").get(str(at(queue, "spec.clusterQueue")))
    if cluster_queue is not None:
        flavors = _of_kind(manifests, "ResourceFlavor")
        yield from _admitted(sequence(at(cluster_queue, "spec.resourceGroups")), flavors, pods)


def _admitted(groups: list[Any], flavors: dict[str, dict[str, Any]], pods: list[_Pods]) -> Iterator[Finding]:
    used: dict[tuple[int, str, str], float] = defaultdict(float)
    for part in pods:
        if not part.count:
            continue
        asked = {kind: value * part.count for kind, value in part.asked().items()}
        covered = {kind for group in groups for kind in sequence(mapping(group).get("coveredResources"))}
        if lacking := sorted(kind for kind, value in asked.items() if value and kind not in covered):
            yield Finding(
                part.where, f"asks for {', '.join(lacking)}, which the ClusterQueue does not cover, so Kueue never admits the job"
            )
            continue
        for number, group in enumerate(groups):
            wanted = {kind: value for kind, value in asked.items() if kind in sequence(mapping(group).get("coveredResources"))}
            if wanted and (lack := _assign(number, mapping(group), flavors, part, wanted, used)):
                yield Finding(part.where, f"Kueue never admits the job: {lack}")


def _assign(
    number: int,
    group: dict[str, Any],
    flavors: dict[str, dict[str, Any]],
    part: _Pods,
    wanted: dict[str, float],
    used: dict[tuple[int, str, str], float],
) -> str | None:
    """Count the pods against the first flavor that has room for them; what is lacking, if none has."""
    names = [str(mapping(item).get("name")) for item in sequence(group.get("flavors"))]
    labels = {name: mapping(at(flavors.get(name), "spec.nodeLabels")) for name in names}
    selector = {key: value for key, value in part.selector.items() if any(key in found for found in labels.values())}
    lack = "no flavor has the labels of its nodeSelector"
    for name, item in zip(names, sequence(group.get("flavors")), strict=True):
        if any(labels[name].get(key) != value for key, value in selector.items()):
            continue
        quota = {
            mapping(row).get("name"): amount(mapping(row).get("nominalQuota")) or 0.0 for row in sequence(mapping(item).get("resources"))
        }
        over = [kind for kind, value in wanted.items() if used[number, name, kind] + value > quota.get(kind, 0.0)]
        if not over:
            for kind, value in wanted.items():
                used[number, name, kind] += value
            return None
        lack = (
            f"its pods need {', '.join(f'{wanted[kind]:g} {kind}' for kind in over)} of the flavor {name}, more than is left of its quota"
        )
    return lack


def _pooled(manifests: list[dict[str, Any]], pods: list[_Pods]) -> Iterator[Finding]:
    """Each machine that Karpenter may start for pods must hold one."""
    pools = _of_kind(manifests, "NodePool").values()
    for part in pods:
        if not pools or GROUP not in part.selector:
            continue
        found = [pool for pool in pools if mapping(at(pool, "spec.template.metadata.labels")).get(GROUP) == part.selector[GROUP]]
        if not found:
            yield Finding(f"{part.where}.spec.nodeSelector", f"no NodePool has the label {GROUP}: {part.selector[GROUP]}")
        tolerated = {mapping(item).get("key") for item in sequence(at(part.template, "spec.tolerations"))}
        for pool in found:
            for name in machines_of(pool):
                if name in MACHINES:
                    yield from fits(f"{part.where}.spec.containers", name, part.asked())
            for taint in sequence(at(pool, "spec.template.spec.taints")):
                if mapping(taint).get("key") not in tolerated:
                    yield Finding(f"{part.where}.spec.tolerations", f"lack {mapping(taint).get('key')}, the taint of their NodePool")


def _scraped(manifests: list[dict[str, Any]], pods: list[_Pods]) -> Iterator[Finding]:
    """Every port of metrics is collected, and whoever collects them may reach it."""
    monitors = _of_kind(manifests, "PodMonitor").values()
    ports = {mapping(end).get("port") for monitor in monitors for end in sequence(at(monitor, "spec.podMetricsEndpoints"))}
    policies = _of_kind(manifests, "NetworkPolicy").values()
    rules = [mapping(rule) for policy in policies for rule in sequence(at(policy, "spec.ingress"))]
    open_ports = {mapping(port).get("port") for rule in rules for port in sequence(rule.get("ports"))}
    for part in pods:
        for port in (mapping(port) for container in part.containers for port in sequence(container.get("ports"))):
            if _METRICS not in str(port.get("name")):
                continue
            if monitors and port["name"] not in ports:
                yield Finding(f"{part.where}.spec.containers", f"no PodMonitor collects the port {port['name']}")
            if rules and port.get("containerPort") not in open_ports:
                yield Finding(f"{part.where}.spec.containers", f"no NetworkPolicy lets Prometheus reach port {port.get('containerPort')}")
