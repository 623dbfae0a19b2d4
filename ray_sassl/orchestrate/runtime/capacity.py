"""What a run needs from a cluster, and what the cluster has or can get."""

# Ray's generated messages have no types.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from ray_sassl.orchestrate.runtime.private import GetClusterStatusReply
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL
from ray_sassl.process.errors import UsageError

_RPC_TIMEOUT_S = 20.0
_HEAD = "node:__internal_head__"


class ResourcesError(UsageError):
    """The cluster can never offer what the run needs."""


@dataclass(frozen=True)
class Need:
    """Something that a run holds as long as it runs.

    Attributes:
        what: A description.
        count: How many of it.
        each: CPUs and GPUs of each, which must be on one node.
        group: The group of nodes that it must be on, or None.
    """

    what: str
    count: int
    each: Mapping[str, float]
    group: str | None = None

    def total(self, resource: str) -> float:
        return self.count * self.each.get(resource, 0.0)

    def in_words(self, count: int) -> str:
        bundle = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items() if amount)
        group = f" on the group {self.group}" if self.group is not None else ""
        return f"{count} x {bundle}{group} for {self.what}"


def sum_of(needs: Iterable[Need], resource: str) -> str:
    """One line for each need of the resource."""
    return "\n".join(f"  {need.total(resource):g} for {need.what}" for need in needs if need.total(resource))


def check_fits(needs: Iterable[Need], amount_of: Callable[[str], float], who: str = "the run", hint: str = "") -> None:
    """Refuse what the cluster can never run.

    Args:
        needs: What is held at once.
        amount_of: How much of a resource the cluster can offer.
        who: What needs it, for the message.
        hint: Ends the message.

    Raises:
        ResourcesError: the needs add up to more CPUs or GPUs than there are; the message lists them.
    """
    needs = list(needs)
    for resource in ("CPU", "GPU"):
        wanted, there = sum(need.total(resource) for need in needs), amount_of(resource)
        if wanted > there:
            raise ResourcesError(
                f"{who} needs {wanted:g} {resource}s and the cluster can offer {there:g}; {wanted - there:g} are missing:\n"
                f"{sum_of(needs, resource)}\nAsk for less (a share of a CPU is allowed), or use a larger cluster.{hint}"
            )


def grows() -> bool:
    """Whether the cluster may get more nodes by itself."""
    if _known_limits():
        return True
    reply = cluster_status()
    heads = [node for node in reply.cluster_resource_state.node_states if _HEAD in node.total_resources]
    # An autoscaler knows the kind of each node that it started; nodes of a plain `ray start` have no kind.
    return reply.autoscaling_state.autoscaler_state_version > 0 and any(node.ray_node_type_name for node in heads)


def is_one_machine() -> bool:
    """Whether the cluster is and stays this one machine."""
    return sum(node["Alive"] for node in ray.nodes()) == 1 and not grows()


def present(name: str) -> float:
    """The amount of a resource on the nodes that are up."""
    return float(ray.cluster_resources().get(name, 0.0))


def offered(name: str) -> float:
    """The amount of a resource that the cluster has, or could have if it grows; infinity if its limit is unknown."""
    if limits := _known_limits():
        return max(present(name), float(limits.get(name, 0.0)))
    return math.inf if grows() else present(name)


def missing_groups(groups: Iterable[str]) -> list[str]:
    """The groups without a node; none if the cluster grows, since a node may be started."""
    there = {node["Labels"].get(GROUP_LABEL) for node in ray.nodes() if node["Alive"]}
    missing = [group for group in groups if group not in there]
    return [] if missing and grows() else missing


def without_room(needs: Sequence[Need], nodes: Iterable[tuple[Mapping[str, float], str | None]]) -> list[tuple[Need, int]]:
    """The needs that would not fit on the nodes if these were free, and how many of each.

    Args:
        nodes: Resources and group of each node.
    """
    free = [(dict(resources), group) for resources, group in nodes]
    unmet = []
    for need in sorted(needs, key=lambda need: (need.group is None, -sum(need.each.values()))):
        left = need.count
        for resources, group in free:
            if need.group is not None and group != need.group:
                continue
            while left and all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in need.each.items()):
                for name, amount in need.each.items():
                    resources[name] = resources.get(name, 0.0) - amount
                left -= 1
        if left:
            unmet.append((need, left))
    return unmet


def _known_limits() -> dict[str, int] | None:
    """The cluster's maximum size, if Ray knows it; open-source autoscalers do not report it."""
    from ray_sassl.orchestrate.runtime.private import state

    return state.get_max_resources_from_cluster_config()


def cluster_status() -> GetClusterStatusReply:
    from ray_sassl.orchestrate.runtime.private import global_worker

    reply = GetClusterStatusReply()
    reply.ParseFromString(global_worker.gcs_client.get_cluster_status(timeout_s=_RPC_TIMEOUT_S))
    return reply
