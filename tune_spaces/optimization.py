"""Learning rate, weight decay, the optimizer's momentum, and the method's temperature and momentum where it has them.

Rates range from a tenth to ten times the base experiment's.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Float, Parameter, SearchSpace, has_path

EXPERIMENT = "moco_cifar10_cpu"


def space(base: ExperimentConfig) -> SearchSpace:
    """Only what the base experiment has, so that every draw is valid."""
    decay = base.optim.weight_decay or 1e-5
    parameters: list[Parameter] = [
        Float(path="optim.base_lr", low=base.optim.base_lr / 10, high=base.optim.base_lr * 10, log=True),
        Float(path="optim.weight_decay", low=decay / 10, high=decay * 10, log=True),
        Float(path="optim.momentum", low=0.8, high=0.98),
    ]
    if has_path(base, "method.temperature"):
        parameters.append(Float(path="method.temperature", low=0.05, high=1.0, log=True))
    parameters += [
        # A share near 1 is searched by its distance from it: 0.9 to 0.9995.
        Float(path=path, low=0.9, high=0.9995)
        for path in ("method.momentum", "method.base_momentum")
        if has_path(base, path)
    ]
    return SearchSpace(parameters=tuple(parameters))
