"""SASSL: how often a view is stylized (p)."""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("moco", "_sassl")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Against no style."""
    del base
    return [Arm("p = 0", ("stylize=identity",)), *(Arm(f"p = {prob:g}", (f"sassl.prob={prob}",)) for prob in (0.2, 0.5, 0.8, 1.0))]
