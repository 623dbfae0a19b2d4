"""The strength of styles and the feature augmentation together."""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import SearchSpace
from tune_spaces import feature_augmentation, style_strength

EXPERIMENT = "simclr_cifar10_cpu_sassl"


def space(base: ExperimentConfig) -> SearchSpace:
    """Both spaces side by side, with more trials for the more dimensions."""
    parameters = style_strength.space(base).parameters + feature_augmentation.space(base).parameters
    return SearchSpace(parameters=parameters, num_trials=60)
