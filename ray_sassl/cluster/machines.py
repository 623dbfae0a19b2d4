"""The machines that definitions name, and how much of each is left to a pod.

Of a machine's memory a hypervisor takes some (Karpenter reckons with 7.5 %), the kubelet reserves a part by the rules of the cloud, and the
pods that run on every node (network, device plug-in, metrics) need the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 2**30
_HYPERVISOR_SHARE = 0.075
_EVICTION_MIB = 100
_DAEMONS_MIB, _DAEMONS_CPUS = 512, 0.5
_STORE_SHARE, _SHM_SHARE = 0.3, 0.35
_IMAGE_GIB = 15
_GKE_STEPS = ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (math.inf, 0.02))
_CPU_STEPS = ((1, 0.06), (1, 0.01), (2, 0.005), (math.inf, 0.0025))


@dataclass(frozen=True)
class Machine:
    """A type of machine.

    Attributes:
        cpus: Its virtual CPUs.
        memory_gib: Its memory as the cloud states it.
        gpus: Its GPUs.
        max_pods: How many pods EKS lets run on it, by its network interfaces; None for a machine of Google Cloud.
    """

    cpus: int
    memory_gib: int
    gpus: int = 0
    max_pods: int | None = None

    @property
    def allocatable_cpus(self) -> float:
        """What the kubelet leaves to pods."""
        return self.cpus - _stepped(self.cpus, _CPU_STEPS)

    @property
    def allocatable_mib(self) -> int:
        """What the kubelet leaves to pods: on EKS all but 255 MiB and 11 MiB per pod, on GKE all but a falling share."""
        seen = self.memory_gib * 1024 * (1 - _HYPERVISOR_SHARE)
        kubelet = 1024 * _stepped(self.memory_gib, _GKE_STEPS) if self.max_pods is None else 255 + 11 * self.max_pods
        return int(seen - kubelet - _EVICTION_MIB)

    @property
    def pod_cpus(self) -> int:
        """The most whole CPUs that one pod can ask for."""
        return math.floor(self.allocatable_cpus - _DAEMONS_CPUS)

    @property
    def pod_memory_gib(self) -> int:
        """The most memory that one pod can ask for."""
        return (self.allocatable_mib - _DAEMONS_MIB) // 1024


MACHINES = {
    "m7i.2xlarge": Machine(8, 32, 0, 58),
    "m7i.4xlarge": Machine(16, 64, 0, 234),
    "m6i.2xlarge": Machine(8, 32, 0, 58),
    "m6i.4xlarge": Machine(16, 64, 0, 234),
    "c6i.4xlarge": Machine(16, 32, 0, 234),
    "c7i.2xlarge": Machine(8, 16, 0, 58),
    "c7i.4xlarge": Machine(16, 32, 0, 234),
    "c7i.8xlarge": Machine(32, 64, 0, 234),
    "g5.xlarge": Machine(4, 16, 1, 58),
    "g5.2xlarge": Machine(8, 32, 1, 58),
    "g6.xlarge": Machine(4, 16, 1, 58),
    "g6.2xlarge": Machine(8, 32, 1, 58),
    "g6.4xlarge": Machine(16, 64, 1, 234),
    "g6.12xlarge": Machine(48, 192, 4, 234),
    "p4d.24xlarge": Machine(96, 1152, 8, 737),
    "p4de.24xlarge": Machine(96, 1152, 8, 737),
    "p5.48xlarge": Machine(192, 2048, 8, 100),
    "e2-standard-8": Machine(8, 32),
    "n2-standard-16": Machine(16, 64),
    "c3-highcpu-22": Machine(22, 44),
    "c3-highcpu-44": Machine(44, 88),
    "g2-standard-4": Machine(4, 16, 1),
    "g2-standard-8": Machine(8, 32, 1),
    "g2-standard-12": Machine(12, 48, 1),
    "a2-highgpu-1g": Machine(12, 85, 1),
    "a2-highgpu-8g": Machine(96, 680, 8),
    "a3-highgpu-8g": Machine(208, 1872, 8),
}


def store_bytes(memory: float) -> float:
    """The object store that Ray makes in a container with so much memory, if it is not told another size."""
    return _STORE_SHARE * memory


def shm_bytes(store: float) -> float:
    """The least /dev/shm for an object store; Ray puts one that does not fit on the disk, where it is many times slower."""
    return store * _SHM_SHARE / _STORE_SHARE


def disk_bytes(store: float) -> float:
    """The least ephemeral storage of a pod: the image and logs, and as much as the object store for what Ray spills."""
    return _IMAGE_GIB * GIB + store


def _stepped(amount: float, steps: tuple[tuple[float, float], ...]) -> float:
    """The sum of shares of the amount, each of one step of it."""
    total = 0.0
    for width, share in steps:
        part = min(width, amount)
        total += share * part
        amount -= part
    return total
