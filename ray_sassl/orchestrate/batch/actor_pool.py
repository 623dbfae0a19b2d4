"""A pool of Ray actors that share a list of independent items. Work of an actor that dies is done again.

The actors that have started do the work, and others join them later: nothing waits for an actor that the cluster has no room for.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import ray
from pydantic import Field
from ray.actor import ActorHandle

from ray_sassl.orchestrate.runtime.autoscaler import first_ended
from ray_sassl.orchestrate.runtime.capacity import Need, offered, present
from ray_sassl.orchestrate.runtime.results import result_of
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.errors import UsageError

_IN_FLIGHT = 2
_RETRIES = 3
_Item = TypeVar("_Item")


class ActorPoolConfig(FrozenConfig):
    """How many actors, and what each takes."""

    num_actors: int | None = Field(default=None, ge=1)
    """By default, as many as the CPUs and GPUs of the cluster allow; if it can grow without a known limit, those of the present nodes."""
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs per actor; it uses as many threads, at least one."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs per actor; a share such as 0.25 is allowed."""


def num_wanted(config: ActorPoolConfig) -> int:
    """How many actors the config asks for, or else how many the cluster can offer.

    Raises:
        UsageError: the cluster can never offer them.
    """
    shares = [(name, share) for name, share in (("CPU", config.num_cpus), ("GPU", config.num_gpus)) if share]
    most = min(offered(name) / share + 1e-9 for name, share in shares)
    there = most if most < math.inf else min(present(name) / share + 1e-9 for name, share in shares)
    wanted = config.num_actors or max(1, int(there))
    if wanted > most:
        raise UsageError(
            f"{wanted} actors of {config.num_cpus:g} CPUs and {config.num_gpus:g} GPUs do not fit: the cluster can offer "
            f"{offered('CPU'):g} CPUs and {offered('GPU'):g} GPUs. Ask for fewer or smaller ones."
        )
    return wanted


@contextmanager
def actor_pool(
    actor_class: type, args: tuple[Any, ...], config: ActorPoolConfig, num_items: int, *, waits: bool = True
) -> Iterator[list[ActorHandle]]:
    """The actors, at least one of which has started; they end with the block.

    Args:
        args: Arguments of the actors' class.
        num_items: No more actors than items are started.
        waits: Whether to wait until one of these actors has started; not needed if other actors do the same work.

    Raises:
        ResourcesError: the cluster can never offer an actor.
        UsageError: the cluster can never offer as many as the config asks for, or the user can fix why an actor cannot be built.
    """
    wanted = num_wanted(config)
    options = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus, "max_restarts": _RETRIES, "max_task_retries": _RETRIES}
    remote: Any = cast(Any, ray.remote)(**options)(actor_class)
    actors = [remote.remote(*args) for _ in range(max(1, min(wanted, num_items)))]
    try:
        if not waits:
            yield actors
            return
        need = Need("an actor", 1, {"CPU": config.num_cpus, "GPU": config.num_gpus})
        result_of(first_ended([actor.__ray_ready__.remote() for actor in actors], [need]))
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def spread(
    actors: Sequence[ActorHandle],
    start: Callable[[ActorHandle, _Item], ray.ObjectRef],
    items: Sequence[_Item],
    *,
    in_flight: int = _IN_FLIGHT,
) -> Iterator[tuple[_Item, Any]]:
    """Each item with its result, in the order in which they end. Every actor has its next item while it works on one.

    Args:
        in_flight: How many items an actor has at a time; 1 if items are few and long, so that none waits for another.

    Raises:
        UsageError: the work on an item raised one.
    """
    left = deque(items)
    coming = _coming(actors)
    waiting: dict[ray.ObjectRef, tuple[_Item, ActorHandle]] = {}

    load = Counter[int]()

    def hand_out(actor: ActorHandle) -> None:
        """Give the actor one item, and its next ones if enough remain for the actors that are still to start."""
        while left and load[id(actor)] < in_flight and (load[id(actor)] == 0 or len(left) > len(coming)):
            item = left.popleft()
            waiting[start(actor, item)] = item, actor
            load[id(actor)] += 1

    while waiting or left:
        (ended, *_), _ = ray.wait([*waiting, *(coming if left else ())], num_returns=1)
        result = result_of(ended)
        if ended in coming:
            hand_out(coming.pop(ended))
            continue
        item, actor = waiting.pop(ended)
        load[id(actor)] -= 1
        hand_out(actor)
        yield item, result


def _coming(actors: Sequence[ActorHandle]) -> dict[ray.ObjectRef, ActorHandle]:
    """The actors by the reference that is ready when they have started."""
    return {cast(Any, actor).__ray_ready__.remote(): actor for actor in actors}


def in_order(
    actors: Sequence[ActorHandle],
    start: Callable[[ActorHandle, _Item], ray.ObjectRef],
    items: Iterable[_Item],
    *,
    in_flight: int = _IN_FLIGHT,
) -> Iterator[tuple[_Item, Any]]:
    """Each item with its result, in the order of the items. At a time, `in_flight` items per actor are in work, or done but not consumed.

    Raises:
        UsageError: the work on an item raised one.
    """
    begun: deque[tuple[_Item, ray.ObjectRef, ActorHandle]] = deque()
    coming, up = _coming(actors), []

    def look_who_came() -> None:
        """Wait for the first actor only."""
        while coming:
            came, _ = ray.wait(list(coming), num_returns=1, timeout=0 if up else None)
            if not came:
                return
            result_of(came[0])
            up.append(coming.pop(came[0]))

    def hand_out(item: _Item) -> None:
        """Give the item to the actor that has the least to do."""
        refs = [ref for _, ref, _ in begun]
        unfinished = set(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1]) if refs else set()
        load = Counter(id(actor) for _, ref, actor in begun if ref in unfinished)
        actor = min(up, key=lambda actor: load[id(actor)])
        begun.append((item, start(actor, item), actor))

    for item in items:
        look_who_came()
        if len(begun) >= in_flight * len(up):
            done, ref, _ = begun.popleft()
            result = result_of(ref)
            hand_out(item)
            yield done, result
        else:
            hand_out(item)
    for done, ref, _ in begun:
        yield done, result_of(ref)
