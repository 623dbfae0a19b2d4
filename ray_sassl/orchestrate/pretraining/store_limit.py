"""How much the stream may keep in Ray's object stores: what the nodes that make its blocks can hold.

Ray Data allows half of all stores together, also of nodes that make no blocks, such as trainers with much memory. Blocks stay where they
are made until they are used, so the small stores of decoding nodes would overflow to their disks while the sum looks nearly empty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext, ExecutionResources

from ray_sassl.orchestrate.runtime.private import ExecutionCallback
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL

_SHARE = 0.4
"""Of a store. Ray spills at 0.8, so a node may have twice its share of the blocks, as while other nodes' workers still start."""
_LOOK_EVERY_S = 5.0
_STAGES = "ray_sassl.stages"
"""The key of the stream's stages in the DataContext."""


@dataclass(frozen=True)
class Stage:
    """Where a stage of the stream runs.

    Attributes:
        group: The group of nodes that it must be on, or None.
        resource: What it takes of a node, `CPU` or `GPU`; nodes with more of it make more of its blocks.
        per_gpu: CPUs that training workers take of each GPU of a node.
        most_taken: CPUs that all training workers take together, which may be fewer than there are GPUs.
    """

    group: str | None
    resource: str = "CPU"
    per_gpu: float = 0.0
    most_taken: float = math.inf

    def amount(self, node: Mapping[str, Any]) -> float:
        """What the node has of the resource, or 0 if the stage cannot be on it."""
        if not node["Alive"] or self.group not in (None, node["Labels"].get(GROUP_LABEL)):
            return 0.0
        return node["Resources"].get(self.resource, 0.0)

    def weight(self, node: Mapping[str, Any]) -> float:
        """How much of the stage the node can run beside a training worker for each of its GPUs, or 0."""
        taken = self.per_gpu * node["Resources"].get("GPU", 0.0) if self.resource == "CPU" else 0.0
        return max(0.0, self.amount(node) - taken)


def store_limit(nodes: Iterable[Mapping[str, Any]], stages: Iterable[Stage]) -> float | None:
    """Bytes that blocks may take in all object stores together, so that no node has more than `_SHARE` of its store to hold.

    Each node of a stage makes blocks in proportion to what it has of the stage's resource.

    Args:
        nodes: As `ray.nodes()` gives them.
        stages: The stages of the stream.

    Returns:
        None if there is no node for any stage.
    """
    nodes = list(nodes)
    limits = []
    for stage in stages:
        weights = [(stage.weight(node), node["Resources"].get("object_store_memory", 0.0)) for node in nodes]
        total = sum(weight for weight, _ in weights)
        limits += [store * total / weight for weight, store in weights if weight > 0]
    return _SHARE * min(limits) if limits else None


def share_of(nodes: Iterable[Mapping[str, Any]], stages: Iterable[Stage], num_streams: int) -> ExecutionResources:
    """What one of several streams may use of the nodes of its stages.

    Ray Data itself divides what each node has among the executions and rounds down to whole CPUs and GPUs, so with more executions than a
    node has CPUs each would get none.
    """
    total, taken, stages = dict.fromkeys(("CPU", "GPU", "object_store_memory", "memory"), 0.0), 0.0, list(stages)
    for node in nodes:
        amounts = {resource: max((s.amount(node) for s in stages if s.resource == resource), default=0.0) for resource in ("CPU", "GPU")}
        if any(amounts.values()):
            taken += amounts["CPU"] - max((s.weight(node) for s in stages if s.resource == "CPU"), default=0.0)
            has = {**node["Resources"], **amounts}
            total = {resource: amount + has.get(resource, 0.0) for resource, amount in total.items()}
    taken = min([taken, *(stage.most_taken for stage in stages)])
    return ExecutionResources(
        cpu=math.ceil((total["CPU"] - taken) / num_streams),
        gpu=math.ceil(total["GPU"] / num_streams),
        object_store_memory=total["object_store_memory"] / num_streams,
        memory=total["memory"] / num_streams,
    )


def set_stages(context: DataContext, stages: Iterable[Stage], num_streams: int = 1) -> None:
    """Keep the stages, and how many streams have them, where `StoreLimit` finds them."""
    context.set_config(_STAGES, (tuple(stages), num_streams))


class StoreLimit(ExecutionCallback):
    """Sets the limit of an execution as it begins, and as nodes come and go."""

    def before_execution_starts(self, executor: Any) -> None:
        self._set(executor)
        if self._num_streams > 1:
            executor._cluster_autoscaler.get_total_resources = lambda: self._share

    def on_execution_step(self, executor: Any) -> None:
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._set(executor)

    def _set(self, executor: Any) -> None:
        self._looked_at = time.monotonic()
        stages, self._num_streams = executor._data_context.get_config(_STAGES, ((), 1))
        nodes = ray.nodes()
        if self._num_streams > 1:
            self._share = share_of(nodes, stages, self._num_streams)
        limit = store_limit(nodes, stages)
        if limit is not None:
            executor._options.resource_limits = ExecutionResources.for_limits(object_store_memory=limit / self._num_streams)
