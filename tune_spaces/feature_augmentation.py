"""Which augmentation of the embeddings, where it stands, how strong it is, and how many features it makes.

Zhang et al. 2024 (arXiv 2410.12396). What the base experiment's method has no use for is left out, so every point is valid for it.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import UsageError
from ray_sassl.study.space import Choice, Float, Int, Interval, Parameter, SearchSpace, SpaceError, has_path

EXPERIMENT = "simclr_cifar10_cpu"

_FA = "method.fa"
_KINDS = ("identity", "mask", "noise", "interpolate", "extrapolate", "swap", "nearest")
_ARCHITECTURES = ("basic", "pre_predictor", "post_predictor", "parallel_predictor")


def space(base: ExperimentConfig) -> SearchSpace:
    """What the method takes is tried out on configs, not known by heart."""
    if not has_path(base, _FA):
        raise UsageError(f"method={base.method.name} has no feature augmentation; take one that has, such as method=simclr or method=byol")
    kind = f"{_FA}.augmentation"
    kinds = tuple(name for name in _KINDS if name == "identity" or _architectures(base, name))
    parameters: list[Parameter] = [Choice(path=kind, choices=kinds)]
    for name in kinds[1:]:
        architectures = _architectures(base, name)
        # A name of its own for each augmentation, since not all of them can stand everywhere.
        place = f"architecture ({name})"
        parameters.append(Choice(path=f"{_FA}.architecture", name=place, choices=architectures, when={kind: (name,)}))
        stoppable = tuple(a for a in architectures if _is_valid(base, augmentation=name, architecture=a, stop_gradient=False))
        if stoppable:
            stop = Choice(
                path=f"{_FA}.stop_gradient", name=f"stop_gradient ({name})", choices=(True, False), when={kind: (name,), place: stoppable}
            )
            parameters.append(stop)
    some = {kind: kinds[1:]}
    parameters += [
        Int(path=f"{_FA}.num_samples", low=1, high=4, when=some),
        Choice(path=f"{_FA}.reduction", choices=("mean", "free"), when=some | {f"{_FA}.num_samples": (2, 3, 4)}),
        Float(path=f"{kind}.mask_prob", low=0.0, high=0.8, when={kind: ("mask",)}),
        Float(path=f"{kind}.noise_std", low=0.01, high=2.0, log=True, when={kind: ("noise",)}),
        Interval(path=f"{kind}.lambda_range", low=(0.0, 0.5), width=(0.0, 0.5), when={kind: ("interpolate", "extrapolate")}),
        Interval(path=f"{kind}.share", low=(0.0, 0.4), width=(0.0, 0.4), when={kind: ("swap",)}),
        Int(path=f"{kind}.support_size", low=1024, high=32768, log=True, when={kind: ("nearest",)}),
    ]
    return SearchSpace(parameters=tuple(p for p in parameters if not isinstance(p, Choice) or len(p.choices) > 1 or p.when))


def _architectures(base: ExperimentConfig, augmentation: str) -> tuple[str, ...]:
    return tuple(a for a in _ARCHITECTURES if _is_valid(base, augmentation=augmentation, architecture=a))


def _is_valid(base: ExperimentConfig, **fa: object) -> bool:
    """Whether the method takes this feature augmentation."""
    point = Choice(path=_FA, choices=(fa,))
    trial = SearchSpace(parameters=(point,))
    try:
        trial.config(base, trial.draw(base, lambda dimension: dimension.at(0.0)))
    except SpaceError:
        return False
    return True
