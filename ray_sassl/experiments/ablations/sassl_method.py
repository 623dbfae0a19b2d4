"""SASSL, the papers' main table: SimCLR, MoCo v2 and BYOL, each with and without style augmentation."""

from __future__ import annotations

import json

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import SIZES, Arm, sized
from ray_sassl.process.errors import UsageError

EXPERIMENTS = sized("moco", "_sassl")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Stylizer, strength and stream of the base experiment for each method."""
    end = next((end for end, _ in SIZES.values() if base.name.removesuffix("_sassl").partition("_")[2] == end), None)
    if end is None:
        raise UsageError(
            f"{base.name} is not one of {', '.join(EXPERIMENTS.values())}, whose methods this table knows; leave --experiment out"
        )
    tree = base.model_dump(mode="json")
    style = tuple(f"{part}={json.dumps(tree[part])}" for part in ("stylize", "sassl", "stream", "scaling"))
    pairs = [
        (
            Arm(method, (*style, "stylize=identity"), experiment=f"{method}_{end}"),
            Arm(f"{method}, SASSL", style, experiment=f"{method}_{end}", against=(method,)),
        )
        for method in ("simclr", "moco", "byol")
    ]
    return [arm for pair in pairs for arm in pair]
