"""Which augmentation of the embeddings, where it stands, how strong it is, and how many features it makes.

Zhang et al. 2024 (arXiv 2410.12396). The augmentations are those that are found, in the ranges that their configs name (`search_ranges`).
What the base experiment's method cannot use is left out, so every point is valid.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.feature_aug import FeatureAugConfig
from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.process.errors import UsageError
from ray_sassl.study.space import Choice, Float, Int, Interval, Parameter, SearchSpace, SpaceError, has_path

EXPERIMENT = "simclr_cifar10_cpu"

_FA = "method.fa"
_PACKAGE = "ray_sassl.feature_aug"
_LOG_FROM = 30
"""A range whose ends differ by more than this factor is drawn on a logarithmic scale."""
_ARCHITECTURES = ("basic", "pre_predictor", "post_predictor", "parallel_predictor")


def space(base: ExperimentConfig) -> SearchSpace:
    """A config is made for each combination, to see what the method takes."""
    if not has_path(base, _FA):
        raise UsageError(f"method={base.method.name} has no feature augmentation; take one that has, such as method=simclr or method=byol")
    kind = f"{_FA}.augmentation"
    configs = {name: load_plugin(_PACKAGE, name).Config for name in plugin_names(_PACKAGE)}
    kinds = ("identity", *(name for name, config in configs.items() if _is_searched(config) and _architectures(base, name)))
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
    ]
    parameters += _strengths({name: configs[name] for name in kinds[1:]})
    return SearchSpace(parameters=tuple(p for p in parameters if not isinstance(p, Choice) or len(p.choices) > 1 or p.when))


def _is_searched(config: type[FeatureAugConfig]) -> bool:
    return not config.is_identity and config.search_ranges() is not None


def _strengths(configs: Mapping[str, type[FeatureAugConfig]]) -> list[Parameter]:
    """The fields of the augmentations; those that several have in the same range are searched together."""
    owners: dict[tuple[str, tuple[float, float], type], list[str]] = {}
    for name, config in configs.items():
        for field, ends in (config.search_ranges() or {}).items():
            owners.setdefault((field, ends, type(getattr(config(), field))), []).append(name)
    fields = [field for field, _, _ in owners]
    parameters: list[Parameter] = []
    for (field, (low, high), kind), names in owners.items():
        path, when = f"{_FA}.augmentation.{field}", {f"{_FA}.augmentation": tuple(names)}
        name = f"{field} ({', '.join(names)})" if fields.count(field) > 1 else ""
        is_log = low > 0 and high / low > _LOG_FROM
        if kind is tuple:
            parameters.append(Interval(path=path, name=name, low=(low, high), width=(0.0, high - low), when=when))
        elif kind is int:
            parameters.append(Int(path=path, name=name, low=low, high=high, log=is_log, when=when))
        else:
            parameters.append(Float(path=path, name=name, low=low, high=high, log=is_log, when=when))
    return parameters


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
