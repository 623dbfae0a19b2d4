"""SASSL: how strongly codes (alpha) and pixels (beta) are blended."""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("moco", "_sassl")
_STRENGTHS = (
    ((0.0, 0.0), (0.1, 0.3)),
    ((0.1, 0.3), (0.1, 0.3)),
    ((0.3, 0.5), (0.3, 0.5)),
    ((0.5, 1.0), (0.5, 1.0)),
    ((1.0, 1.0), (0.1, 0.3)),
    ((0.1, 0.3), (1.0, 1.0)),
    ((1.0, 1.0), (1.0, 1.0)),
)
"""Alpha and beta: the partner's share zero, the papers' setting (section 4), stronger ones, and without either of the two blendings."""


def arms(base: ExperimentConfig) -> list[Arm]:
    """Against no style."""
    del base
    strengths = [
        Arm(f"alpha {alpha[0]:g} to {alpha[1]:g}, beta {beta[0]:g} to {beta[1]:g}", (f"sassl.alpha={[*alpha]}", f"sassl.beta={[*beta]}"))
        for alpha, beta in _STRENGTHS
    ]
    return [Arm("no style", ("stylize=identity",)), *strengths]
