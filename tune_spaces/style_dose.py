"""How often views are stylized, by which stylizer, and how strongly: as a dose in gray levels, which is the same for every stylizer.

In `style_strength`, alpha and beta mean something else for each stylizer: at the papers' strength `swift` changes pixels by four times as
much as `color_statistics` does. Here stylizers are compared at equal doses, up to that of strong color jitter.
"""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Choice, Dose, Float, SearchSpace

EXPERIMENT = "moco_cifar10_cpu_sassl"


def space(base: ExperimentConfig) -> SearchSpace:
    """With a bank in the base experiment its stylizer is kept, to which the bank's codes belong."""
    stylizers = () if base.sassl.bank else (Choice(path="stylize", choices=("color_statistics", "fda", "swift")),)
    views = Choice(path="sassl.views", choices=("left", "right", "both"))
    return SearchSpace(parameters=(Float(path="sassl.prob", low=0.0, high=1.0), Dose(low=0.0, high=30.0), views, *stylizers))
