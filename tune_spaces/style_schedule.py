"""How often and how strongly views are stylized, and the learning rate, moved while the encoders train (population based training).

Every trial is trained to its end; between evaluations the worst go on from the checkpoints of the best, with other strengths. So what is
found is a course of strengths over a run (`moves` in the tables), and `best.yaml` has the last ones.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Float, Interval, SearchSpace

EXPERIMENT = "moco_cifar10_cpu_sassl"


def space(base: ExperimentConfig) -> SearchSpace:
    """A population of eight; the learning rate ranges from a third to three times the base experiment's."""
    rate = base.optim.base_lr
    parameters = (
        Float(path="sassl.prob", low=0.0, high=1.0),
        Interval(path="sassl.alpha", low=(0.0, 0.7), width=(0.0, 0.3)),
        Interval(path="sassl.beta", low=(0.0, 0.7), width=(0.0, 0.3)),
        Float(path="optim.base_lr", low=rate / 3, high=rate * 3, log=True),
    )
    return SearchSpace(parameters=parameters, searcher="random", scheduler="pbt", num_trials=8)
