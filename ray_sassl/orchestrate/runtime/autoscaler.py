"""Waiting on a cluster that adds nodes by itself: what the run waits for, and what can never come.

Open-source Ray does not tell a driver how far its cluster may grow. But its autoscaler (version 2) reports every few seconds which nodes it
has asked for, which could not be started, and which requests fit on no kind of node. So on a cluster that grows, a run starts to wait, says
what for, and fails if that can never come.
"""

# Ray's generated messages have no types.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

import ray
import ray.exceptions

from ray_sassl.orchestrate.runtime.capacity import Need, ResourcesError, cluster_status, present, sum_of, without_room
from ray_sassl.orchestrate.runtime.private import (
    DEAD,
    DRAINING,
    AutoscalingState,
    ClusterResourceState,
    GangResourceRequest,
    ResourceRequest,
)
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL
from ray_sassl.printing import open_console

LOOK_EVERY_S = 2.0
PATIENCE_S = 60.0
"""So long nothing may be on its way before what the autoscaler cannot start is given up: an idle node of another kind may have to go
first."""
_SAY_EVERY_S = 60.0


class Waiting:
    """Looks, now and then, at what the run still waits for.

    Args:
        needs: What it holds at once.
    """

    def __init__(self, needs: Sequence[Need]) -> None:
        self._needs = needs
        self._looked = self._hopeful = time.monotonic()
        self._text = ""

    def look(self, *, has_begun: bool) -> str:
        """What is waited for, in words; empty where nothing is. The last answer where that is of less than two seconds ago.

        Args:
            has_begun: All that is needed was there once, so that it may come again, and the wait for it is not given up.

        Raises:
            ResourcesError: it has no room on any node, nor on one that the autoscaler may start.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return self._text
        self._looked = now
        try:
            reply = cluster_status()
        except ray.exceptions.RpcError:  # the head is busy, or gone, which others find out
            return self._text
        state, cluster = reply.autoscaling_state, reply.cluster_resource_state
        alive = [node for node in cluster.node_states if node.status not in (DEAD, DRAINING)]
        unmet = without_room(self._needs, [(node.total_resources, node.labels.get(GROUP_LABEL)) for node in alive])
        self._text = _in_words(unmet, state, _is_queued(self._needs, cluster))
        never = _never_met(unmet, state)
        if has_begun or _coming(state) or not never:
            self._hopeful = now
        if now - self._hopeful > PATIENCE_S:
            raise ResourcesError(self._why(never, len(alive)))
        return self._text

    def _why(self, never: list[tuple[Need, int]], num_nodes: int) -> str:
        lines = [f"  {need.in_words(count)}" for need, count in never]
        sums = []
        for name in ("CPU", "GPU"):
            wanted = sum(need.total(name) for need in self._needs)
            if wanted:
                sums.append(f"In all it needs {wanted:g} {name}s, and {present(name):g} are there:\n{sum_of(self._needs, name)}")
        gpus = any(need.each.get("GPU") for need, _ in never)
        hint = " Where no group has GPUs, work on CPUs instead (scaling.use_gpu=false, or --gpus 0)." if gpus else ""
        return (
            f"there is no room for\n{chr(10).join(lines)}\non the nodes that are up ({num_nodes}), and no other will be started for it.\n"
            f"{chr(10).join(sums)}\nAsk for less (a share of a CPU is allowed), or let the cluster have more or larger nodes.{hint}"
        )


def first_ended(refs: Sequence[ray.ObjectRef], needs: Sequence[Need]) -> ray.ObjectRef:
    """The first reference that is ready. While that takes long, what is waited for is printed.

    Args:
        needs: What has to have room for it.

    Raises:
        ResourcesError: there will never be room.
    """
    waiting, announce = Waiting(needs), Announcer(say)
    while True:
        ended, _ = ray.wait(list(refs), num_returns=1, timeout=LOOK_EVERY_S)
        if ended:
            return ended[0]
        announce(waiting.look(has_begun=False))


class Announcer:
    """Says what is waited for once it has changed, and again every minute.

    Args:
        say: Prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said, self._said_at, self._since = "", -math.inf, 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if not self._said:
            self._since = now
        if text and (text != self._said or now - self._said_at > _SAY_EVERY_S):
            passed = f" ({now - self._since:.0f} s so far)" if now - self._since >= 1 else ""
            self._say(f"waiting: {text}{passed}")
            self._said_at = now
        self._said = text


def say(line: str) -> None:
    """Print a line."""
    open_console().print(line, soft_wrap=True)


def _coming(state: AutoscalingState) -> Counter[str]:
    """How many nodes of each kind were asked for and are not up yet."""
    coming = Counter[str]()
    for request in state.pending_instance_requests:
        coming[request.ray_node_type_name] += request.count
    for node in state.pending_instances:
        coming[node.ray_node_type_name] += 1
    return coming


def _infeasible(state: AutoscalingState) -> list[ResourceRequest]:
    """All that no node has room for, neither one that is there nor one that may be started."""
    found = list(state.infeasible_resource_requests)
    for gang in state.infeasible_gang_resource_requests:
        found += _members(gang)
    for constraint in state.infeasible_cluster_resource_constraints:
        found += [counted.request for counted in constraint.resource_requests]
    return found


def _never_met(unmet: list[tuple[Need, int]], state: AutoscalingState) -> list[tuple[Need, int]]:
    """For which of it there will never be room: an autoscaler says so, or there is none."""
    if state.autoscaler_state_version == 0:
        return unmet
    infeasible = {_shape_of_request(request) for request in _infeasible(state)}
    return [(need, count) for need, count in unmet if _shape(need) in infeasible]


def _members(gang: GangResourceRequest) -> Sequence[ResourceRequest]:
    """What is asked for together; Ray has two ways to write it down."""
    return gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests


def _is_queued(needs: Sequence[Need], cluster: ClusterResourceState) -> bool:
    """Whether something like what is needed waits for room."""
    shapes = {_shape(need) for need in needs}
    waiting = [request for gang in cluster.pending_gang_resource_requests for request in _members(gang)]
    return any(_shape_of_request(request) in shapes for request in waiting)


def _in_words(unmet: list[tuple[Need, int]], state: AutoscalingState, is_queued: bool) -> str:
    if not unmet:
        return "others hold what the run needs" if is_queued else ""
    coming = ", ".join(f"{count} of {kind}" for kind, count in sorted(_coming(state).items()))
    failed = "; ".join(f"{one.ray_node_type_name}: {one.reason}" for one in state.failed_instance_requests)
    parts = ["no room yet for " + " and ".join(need.in_words(count) for need, count in unmet)]
    parts.append(f"nodes on their way: {coming}" if coming else "no node is on its way")
    return "; ".join([*parts, *([f"could not be started: {failed}"] if failed else [])])


_Shape = tuple[frozenset[tuple[str, float]], str | None]


def _shape(need: Need) -> _Shape:
    return frozenset((name, round(amount, 4)) for name, amount in need.each.items() if amount), need.group


def _shape_of_request(request: ResourceRequest) -> _Shape:
    bundle = frozenset((name, round(amount, 4)) for name, amount in request.resources_bundle.items() if amount)
    groups = [
        value
        for selector in request.label_selectors
        for constraint in selector.label_constraints
        if constraint.label_key == GROUP_LABEL
        for value in constraint.label_values
    ]
    return bundle, groups[0] if groups else None
