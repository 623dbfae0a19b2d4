"""Whether pods fit on their machines, and Ray's object store into their shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ray_sassl.cluster.findings import Finding, at, mapping, sequence
from ray_sassl.cluster.groups import amount, ray_containers
from ray_sassl.cluster.machines import GIB, MACHINES, disk_bytes, shm_bytes, store_bytes
from ray_sassl.plugins import did_you_mean

MACHINE = "ray-sassl/machine"
"""An annotation of the pods that names the machine they are sized for, where no node selector does."""
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
"""The label of nodes, in every cloud, with the type of their machine."""


def check_sizes(where: str, group: dict[str, Any]) -> Iterator[Finding]:
    """The findings of one group of pods; `where` is its path."""
    pod, inside = mapping(at(group, "template.spec")), f"{where}.template.spec"
    for container in ray_containers(group):
        requests, limits = mapping(at(container, "resources.requests")), mapping(at(container, "resources.limits"))
        resources = f"{inside}.containers[0].resources"
        memory = amount(limits.get("memory", requests.get("memory")))
        if memory is None:
            yield Finding(f"{resources}.limits.memory", "is missing: Ray would take the whole machine's memory for its own")
            continue
        yield from _fits(resources, group, pod, limits | requests)
        given = amount(at(group, "rayStartParams.object-store-memory"))
        store = given if given is not None else store_bytes(memory)
        yield from _shared_memory(inside, pod, container, store, memory)
        disk = amount(requests.get("ephemeral-storage"))
        if disk is None or disk < disk_bytes(store):
            lacks = "is missing" if disk is None else f"is {_gib(disk)}"
            yield Finding(
                f"{resources}.requests.ephemeral-storage",
                f"{lacks}; the image and what Ray spills need {_gib(disk_bytes(store), up=True)}, else the pod may come to a full disk",
            )


def _fits(where: str, group: dict[str, Any], pod: dict[str, Any], asked: dict[str, Any]) -> Iterator[Finding]:
    name = mapping(pod.get("nodeSelector")).get(INSTANCE_TYPE) or mapping(at(group, "template.metadata.annotations")).get(MACHINE)
    if name is None:
        yield Finding(
            f"{where}.requests",
            f"no machine is named, so that the sizes were not compared with it; annotate the pods with {MACHINE}: TYPE, or select "
            f"{INSTANCE_TYPE}",
            is_note=True,
        )
        return
    if str(name) not in MACHINES:
        known = did_you_mean(str(name), MACHINES)
        yield Finding(f"{where}.requests", f"what {name} leaves to pods is not known here{known}; compare it yourself", is_note=True)
        return
    yield from fits(where, str(name), asked)


def fits(where: str, name: str, asked: dict[str, Any]) -> Iterator[Finding]:
    """Whether one pod that asks for so much fits on a known machine of this name."""
    machine = MACHINES[name]
    cpus, memory, gpus = (amount(asked.get(kind)) or 0.0 for kind in ("cpu", "memory", "nvidia.com/gpu"))
    if memory > machine.pod_memory_gib * GIB:
        yield Finding(
            f"{where}.requests.memory",
            f"{_gib(memory)} do not fit on {name}, which has {machine.allocatable_mib:,} MiB for all pods; ask for at most "
            f"{machine.pod_memory_gib}Gi",
        )
    if cpus > machine.pod_cpus:
        yield Finding(
            f"{where}.requests.cpu",
            f"{cpus:g} CPUs do not fit on {name}, which has {machine.allocatable_cpus:.2f} for all pods; ask for {machine.pod_cpus}",
        )
    if gpus > machine.gpus:
        yield Finding(f"{where}.limits", f"{gpus:g} GPUs are asked for, and {name} has {machine.gpus}")


def _shared_memory(where: str, pod: dict[str, Any], container: dict[str, Any], store: float, memory: float) -> Iterator[Finding]:
    needed = shm_bytes(store)
    mounted = [
        mapping(item).get("name") for item in sequence(container.get("volumeMounts")) if mapping(item).get("mountPath") == "/dev/shm"
    ]
    volumes = [mapping(volume) for volume in sequence(pod.get("volumes")) if mapping(volume).get("name") in mounted]
    advice = f"mount an emptyDir of medium Memory with sizeLimit {_gib(needed, up=True)} or more at /dev/shm"
    if not volumes or at(volumes[0], "emptyDir.medium") != "Memory":
        yield Finding(
            f"{where}.volumes", f"no memory is mounted at /dev/shm, so Ray puts its object store of {_gib(store)} on the disk; {advice}"
        )
        return
    size = amount(at(volumes[0], "emptyDir.sizeLimit"))
    size = memory if size is None else size
    if size < needed:
        yield Finding(
            f"{where}.volumes",
            f"/dev/shm has {_gib(size)}, and Ray's object store {_gib(store)} (30 % of the memory, unless rayStartParams says "
            f"object-store-memory), so Ray puts it on the disk; {advice}",
        )


def _gib(size: float, *, up: bool = False) -> str:
    return f"{math.ceil(size / GIB)}Gi" if up else f"{size / GIB:.3g}Gi"
