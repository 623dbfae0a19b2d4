"""How many trials fit in the cluster at once, from what one trial holds."""

from __future__ import annotations

import math

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.orchestrate.launch import ResourcesError, resource_needs, uses_gpu
from ray_sassl.orchestrate.session import offered
from ray_sassl.orchestrate.stream import layout_of
from ray_sassl.study.record import StudyConfig

_RESOURCES = ("CPU", "GPU")
_OF_A_LAUNCHER = {"memory": 64.0 * 2**20}
"""What the actor of a trial holds whose run has workers of its own: it must hold something, and CPUs are for the workers."""


def trial_needs(config: ExperimentConfig, *, is_alone: bool) -> list[tuple[str, dict[str, float]]]:
    """What a trial holds at once, in words and by resource. The actor that launches the run takes nothing.

    Args:
        is_alone: No other trial runs beside it, so that its pool of stylizers cannot grow into what another one waits for.
    """
    use_gpu = uses_gpu(config) if config.scaling.num_workers else bool(config.scaling.use_gpu is not False and offered("GPU") >= 1)
    if config.scaling.num_workers == 0:
        bundle = {"CPU": config.scaling.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
        return [("the whole run in the trial's process (scaling.cpus_per_worker)", bundle)]
    needs = resource_needs(config, use_gpu)
    pool = config.stream.pool
    if not is_alone and layout_of(config) == "pool" and pool.max > pool.min:
        more = pool.max - pool.min
        needs.append((f"{more} more stylizers (stream.pool.max)", {"CPU": more * pool.num_cpus, "GPU": more * pool.num_gpus}))
    return needs


def num_concurrent(study: StudyConfig) -> int:
    """How many trials run at once: as many as the cluster has room for, or fewer where the study says so.

    Raises:
        ResourcesError: not one trial fits, or not as many as are asked for or as the scheduler needs; trials would wait for one another for
            ever. The message has the sum.
    """
    room = _room(study.base, is_alone=False) or (1 if _room(study.base, is_alone=True) else 0)
    if room == 0:
        raise ResourcesError(_sum(study.base, 1, is_alone=True))
    population = study.scheduler == "pbt" and study.base.scaling.num_workers > 0
    wanted = study.num_trials if population else study.max_concurrent or 1
    if wanted > room:
        why = f"population based training keeps all {wanted} trials going at once. " if population else ""
        raise ResourcesError(why + _sum(study.base, wanted, is_alone=False))
    return min(study.max_concurrent or room, study.num_trials)


def actor_resources(config: ExperimentConfig) -> dict[str, float]:
    """What the trial's actor holds itself: everything where the run takes place in it."""
    if config.scaling.num_workers:
        return _OF_A_LAUNCHER
    (_, bundle), *_ = trial_needs(config, is_alone=True)
    return bundle


def _room(config: ExperimentConfig, *, is_alone: bool) -> int:
    needs = trial_needs(config, is_alone=is_alone)
    totals = {name: sum(need.get(name, 0.0) for _, need in needs) for name in _RESOURCES}
    return min(math.floor(offered(name) / total + 1e-9) for name, total in totals.items() if total)


def _sum(config: ExperimentConfig, count: int, *, is_alone: bool) -> str:
    needs = trial_needs(config, is_alone=is_alone)
    lines = []
    for name in _RESOURCES:
        parts = [(what, need[name]) for what, need in needs if need.get(name)]
        if parts:
            total = sum(amount for _, amount in parts)
            lines.append(f"  {count} x {total:g} = {count * total:g} {name}s of {offered(name):g}:")
            lines += [f"    {amount:g} for {what}" for what, amount in parts]
    trials = "trial needs" if count == 1 else "trials at once need"
    return (
        f"{count} {trials} more than the cluster can offer, so the search would wait for ever:\n" + "\n".join(lines) + "\n"
        "Lower --max-concurrent, ask for less in scaling and stream (a share of a CPU is allowed), or use a larger cluster."
    )
