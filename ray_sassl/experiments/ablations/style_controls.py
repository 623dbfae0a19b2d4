"""SASSL against its controls: no style, no partner, colors alone, amplitudes alone.

The last two change pixels as much as the style does (docs/controls.md). Any experiment with style can be the base:
`--experiment byol_imagenet_sassl`.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized
from ray_sassl.process.errors import UsageError

EXPERIMENTS = sized("moco", "_sassl")
PROTOCOLS = ("knn", "linear", "robustness")


def arms(base: ExperimentConfig) -> list[Arm]:
    """The style is compared with each of its controls, and these with no style."""
    if base.stylize.is_identity:
        raise UsageError(
            f"{base.name} has no style to control; take an experiment with it, such as moco_cifar10_cpu_sassl, or stylize=swift"
        )
    controls = [
        Arm("none", ("stylize=identity",)),
        Arm("reconstruction (alpha = 0)", ("sassl.alpha=[0, 0]",)),
        Arm("colors, equal dose", ("stylize=color_statistics",), dose_of="style"),
        Arm("amplitudes, equal dose", ("stylize=fda",), dose_of="style"),
    ]
    return [*controls, Arm("style", against=tuple(arm.name for arm in controls))]
