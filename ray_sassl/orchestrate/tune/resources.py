"""How many trials fit in the cluster at once, from what one trial holds."""

from __future__ import annotations

import math
from collections.abc import Callable

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.orchestrate.pretraining.preflight import resource_needs, uses_gpu
from ray_sassl.orchestrate.pretraining.stream import layout_of
from ray_sassl.orchestrate.runtime.capacity import Need, ResourcesError, offered, present
from ray_sassl.study.record import StudyConfig

_RESOURCES = ("CPU", "GPU")
_OF_A_LAUNCHER = {"memory": 64.0 * 2**20}
"""What a trial's actor holds if its run has workers of its own: Ray wants it to hold something, and the CPUs are for the workers."""


def trial_needs(config: ExperimentConfig, *, is_alone: bool) -> list[Need]:
    """What a trial holds at once, in words and by resource. The actor that launches the run needs no CPU or GPU.

    Args:
        is_alone: Whether no other trial runs at the same time. Then its pool of stylizers cannot take what another trial waits for.
    """
    use_gpu = uses_gpu(config) if config.scaling.num_workers else bool(config.scaling.use_gpu is not False and offered("GPU") >= 1)
    if config.scaling.num_workers == 0:
        bundle = {"CPU": config.scaling.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
        return [Need("the whole run in the trial's process (scaling.cpus_per_worker)", 1, bundle)]
    needs = resource_needs(config, use_gpu)
    pool = config.stream.pool
    if not is_alone and layout_of(config) == "pool" and pool.max > pool.min:
        more = pool.max - pool.min
        each = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
        needs.append(Need(f"{more} more stylizers (stream.pool.max)", more, each, pool.node_group))
    return needs


def num_concurrent(study: StudyConfig) -> int:
    """How many trials run at once: as many as the cluster has room for, or fewer if the study says so.

    If the cluster can grow without a known limit, the number is what the study says, or else what fits on the present nodes, but at least
    one: trials that start and find no stylizers would wait for one another.

    Raises:
        ResourcesError: no trial fits, or fewer fit than the study or the scheduler asks for; trials would wait for one another forever. The
            message has the sum.
    """
    room = _room(study.base, offered, is_alone=False) or (1 if _room(study.base, offered, is_alone=True) else 0)
    if room == 0:
        raise ResourcesError(_sum(study.base, 1, is_alone=True))
    population = study.scheduler == "pbt" and study.base.scaling.num_workers > 0
    wanted = study.num_trials if population else study.max_concurrent or 1
    if wanted > room:
        why = f"population based training runs all {wanted} trials at once. " if population else ""
        raise ResourcesError(why + _sum(study.base, wanted, is_alone=False, option="--trials" if population else "--max-concurrent"))
    if room == math.inf:
        room = study.num_trials if population else max(1, _room(study.base, present, is_alone=False))
    return min(study.max_concurrent or int(room), study.num_trials)


def actor_resources(config: ExperimentConfig) -> dict[str, float]:
    """What the trial's actor holds itself: everything if the run takes place in it."""
    if config.scaling.num_workers:
        return _OF_A_LAUNCHER
    need, *_ = trial_needs(config, is_alone=True)
    return dict(need.each)


def _room(config: ExperimentConfig, amount_of: Callable[[str], float], *, is_alone: bool) -> float:
    """For how many trials these amounts of each resource suffice; may be infinite."""
    needs = trial_needs(config, is_alone=is_alone)
    totals = {name: sum(need.total(name) for need in needs) for name in _RESOURCES}
    room = min(amount_of(name) / total for name, total in totals.items() if total)
    return room if room == math.inf else math.floor(room + 1e-9)


def _sum(config: ExperimentConfig, count: int, *, is_alone: bool, option: str = "--max-concurrent") -> str:
    needs = trial_needs(config, is_alone=is_alone)
    lines = []
    for name in _RESOURCES:
        if total := sum(need.total(name) for need in needs):
            lines.append(f"  {count} x {total:g} = {count * total:g} {name}s of {offered(name):g}:")
            lines += [f"    {need.total(name):g} for {need.what}" for need in needs if need.total(name)]
    trials = "trial needs" if count == 1 else "trials at once need"
    return (
        f"{count} {trials} more than the cluster can offer, so the search would wait forever:\n" + "\n".join(lines) + "\n"
        f"Lower {option}, ask for less in scaling and stream (a share of a CPU is allowed), or use a larger cluster."
    )
