"""SASSL: which view is stylized."""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("moco", "_sassl")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Against no style."""
    del base
    return [Arm("neither", ("stylize=identity",)), *(Arm(view, (f"sassl.views={view}",)) for view in ("left", "right", "both"))]
