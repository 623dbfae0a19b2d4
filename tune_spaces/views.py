"""How much of the image a crop keeps, how strongly colors are changed, how often views are gray or blurred.

The same change is made to both views; a pair of unlike views stays unlike, as jitter is searched as a multiple of the base experiment's.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Float, Interval, Parameter, SearchSpace, value_at

EXPERIMENT = "moco_cifar10_cpu"

_JITTER = ("brightness", "contrast", "saturation", "hue")


def space(base: ExperimentConfig) -> SearchSpace:
    """Jitter goes as far as the hue's range allows, at most to twice the base experiment's."""
    paths = {f"views.{side}.{name}": value_at(base, f"views.{side}.{name}") for side in ("left", "right") for name in _JITTER}
    factors = {path: float(value) for path, value in paths.items() if isinstance(value, int | float) and value}
    hue = max((factor for path, factor in factors.items() if path.endswith("hue")), default=0.0)
    parameters: list[Parameter] = [
        Interval(path=_both("crop_scale"), name="crop_scale", low=(0.05, 0.6)),
        Float(path=_both("grayscale_prob"), name="grayscale_prob", low=0.0, high=0.5),
        Float(path=_both("blur_prob"), name="blur_prob", low=0.0, high=1.0),
    ]
    if factors:
        most = min(2.0, 0.5 / hue) if hue else 2.0
        parameters.append(Float(path=tuple(factors), factors=tuple(factors.values()), name="jitter", low=0.0, high=most))
    return SearchSpace(parameters=tuple(parameters))


def _both(name: str) -> tuple[str, str]:
    return f"views.left.{name}", f"views.right.{name}"
