"""FA: whether gradients flow through the augmentation.

For a method that trains its targets, such as SimCLR: targets of momentum networks take no gradient anyway.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("simclr_fa")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Each against the control with the same gradients, and without the stop against with it."""
    del base
    found = []
    for name, stop in (("stop-gradient", "true"), ("gradient", "false")):
        flows = f"method.fa.stop_gradient={stop}"
        found += [
            Arm(f"control, {name}", ("method.fa.augmentation=control", flows)),
            Arm(f"augmented, {name}", (flows,), against=(f"control, {name}", *(["augmented, stop-gradient"] if stop == "false" else []))),
        ]
    return found
