"""FA: where the augmentation stands, and which one it is, one feature each.

Zhang et al. 2024 (arXiv 2410.12396). In each architecture augmentations are compared with `control`, which leaves everything but the change
of features; what the base experiment's method cannot use is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from ray_sassl.config.overrides import OverrideError, apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("simclr_fa")
_AUGMENTATIONS = ("mask", "noise", "interpolate", "extrapolate", "swap", "nearest")


def arms(base: ExperimentConfig) -> list[Arm]:
    """The predictor is as wide as the base experiment's, where there is one."""
    return [arm for architecture in ("parallel_predictor", "pre_predictor", "post_predictor", "basic") for arm in _arms(base, architecture)]


def _arms(base: ExperimentConfig, architecture: str) -> Iterator[Arm]:
    plain = f"{architecture}, control"
    for augmentation in ("control", *_AUGMENTATIONS):
        fa = {"augmentation": {"name": augmentation}, "architecture": architecture, "num_samples": 1, "reduction": "mean"}
        method = base.method.model_dump(mode="json") | {"name": base.method.name}
        if architecture == "basic":
            fields = type(base.method).model_fields
            method |= {name: fields[name].get_default() for name in fields if name.startswith("predictor_")}
        overrides = (f"method={json.dumps(method | {'fa': method['fa'] | fa})}",)
        try:
            apply_overrides(base, overrides)
        except OverrideError:
            continue
        yield Arm(f"{architecture}, {augmentation}", overrides, against=(plain,))
