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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from ray_sassl.orchestrate.runtime.capacity import Need, ResourcesError, cluster_status, grows, present, sum_of, without_room
from ray_sassl.orchestrate.runtime.private import (
    DEAD,
    DRAINING,
    AutoscalingState,
    ClusterResourceState,
    GangResourceRequest,
    ResourceRequest,
)
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL, in_group
from ray_sassl.process.console import open_console
from ray_sassl.process.ending import lastly

LOOK_EVERY_S = 2.0
PATIENCE_S = 60.0
"""How long no node may be coming before a run gives up on nodes that the autoscaler cannot start: an idle node of another kind may have to
be removed first."""
_SAY_EVERY_S = 60.0


class Waiting:
    """Checks regularly what the run still waits for.

    Args:
        needs: What the run holds at once.
    """

    def __init__(self, needs: Sequence[Need]) -> None:
        self._needs = needs
        self._looked = self._hopeful = time.monotonic()
        self._text = ""

    def look(self, *, has_begun: bool) -> str:
        """What the run waits for, in words, or an empty string; for two seconds the same answer is returned.

        Args:
            has_begun: Whether the run has already had everything that it needs, so that the wait is not given up.

        Raises:
            ResourcesError: a need has no room on any node, nor on one that the autoscaler may start.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return self._text
        self._looked = now
        try:
            reply = cluster_status()
        except ray.exceptions.RpcError:  # the head is busy or gone, which others detect
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
                sums.append(f"In total it needs {wanted:g} {name}s, and the cluster has {present(name):g}:\n{sum_of(self._needs, name)}")
        gpus = any(need.each.get("GPU") for need, _ in never)
        hint = " If no group has GPUs, use CPUs instead (scaling.use_gpu=false, or --gpus 0)." if gpus else ""
        return (
            f"there is no room for\n{chr(10).join(lines)}\non the nodes that are up ({num_nodes}), and no other will be started for it.\n"
            f"{chr(10).join(sums)}\nAsk for less (a share of a CPU is allowed), or let the cluster have more or larger nodes.{hint}"
        )


@ray.remote
def _nothing() -> None:
    pass


@contextmanager
def asked_for(needs: Sequence[Need]) -> Iterator[None]:
    """Within it, a cluster that grows is asked for nodes for all of the needs at once, also for those whose work begins later.

    Tasks that do nothing wait for the nodes; they have ended before work of others comes, and at the end of the block those that still wait
    are withdrawn. Ray Train and Ray Data ask too, but Data not before the training workers are there.
    """
    if not grows():
        yield
        return
    asked = []
    for need in needs:
        where: dict[str, Any] = {"label_selector": in_group(need.group)} if need.group is not None else {}
        task = _nothing.options(num_cpus=need.each.get("CPU", 0.0), num_gpus=need.each.get("GPU", 0.0), max_retries=0, **where)
        asked += [task.remote() for _ in range(need.count)]

    def withdraw() -> None:
        for task in asked:
            ray.cancel(task)

    with lastly("withdraw the requests for nodes", withdraw):
        yield


def first_ended(refs: Sequence[ray.ObjectRef], needs: Sequence[Need]) -> ray.ObjectRef:
    """The first reference that is ready; while it waits, it prints what it waits for.

    Args:
        needs: What the work holds.

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
    """Prints what a run waits for when it changes, and again every minute.

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
    """Requested nodes of each kind that are not up yet."""
    coming = Counter[str]()
    for request in state.pending_instance_requests:
        coming[request.ray_node_type_name] += request.count
    for node in state.pending_instances:
        coming[node.ray_node_type_name] += 1
    return coming


def _infeasible(state: AutoscalingState) -> list[ResourceRequest]:
    """Requests that fit on no node, present or startable."""
    found = list(state.infeasible_resource_requests)
    for gang in state.infeasible_gang_resource_requests:
        found += _members(gang)
    for constraint in state.infeasible_cluster_resource_constraints:
        found += [counted.request for counted in constraint.resource_requests]
    return found


def _never_met(unmet: list[tuple[Need, int]], state: AutoscalingState) -> list[tuple[Need, int]]:
    """The unmet needs that can never be met, because the autoscaler says so or there is none."""
    if state.autoscaler_state_version == 0:
        return unmet
    infeasible = {_shape_of_request(request) for request in _infeasible(state)}
    return [(need, count) for need, count in unmet if _shape(need) in infeasible]


def _members(gang: GangResourceRequest) -> Sequence[ResourceRequest]:
    """The requests of a gang, which Ray writes in one of two ways."""
    return gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests


def _is_queued(needs: Sequence[Need], cluster: ClusterResourceState) -> bool:
    """Whether a request with the shape of one of the needs is pending."""
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
