"""FA: views of equal strength, a weaker right one, a stronger left one."""

from __future__ import annotations

import json

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized
from ray_sassl.views.recipes import with_strong_left, with_weak_right

EXPERIMENTS = sized("simclr_fa")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Each against the control with the same views. Both views like the base experiment's right one are the symmetric pair."""
    symmetric = base.views.model_copy(update={"left": base.views.right})
    pairs = {"symmetric": symmetric, "weak right": with_weak_right(symmetric), "strong left": with_strong_left(symmetric)}
    found = []
    for name, views in pairs.items():
        override = f"views={json.dumps(views.model_dump(mode='json'))}"
        found += [
            Arm(f"{name}, control", (override, "method.fa.augmentation=control")),
            Arm(name, (override,), against=(f"{name}, control",)),
        ]
    return found
