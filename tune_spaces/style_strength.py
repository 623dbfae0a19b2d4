"""How often and how strongly views are stylized, which ones, from which styles, by which stylizer.

The papers' alpha and beta in [0.1, 0.3] and p = 0.8 were chosen for ImageNet (SASSL, arXiv 2312.01187, section 4); p = 0 is no style at
all. Bank and Gaussian styles are tried where the base experiment names a bank: `sassl.style_source=bank sassl.bank=FILE`; its codes are for
one stylizer, which is then kept.
"""

from __future__ import annotations

from typing import Any

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.study.space import Choice, Float, Interval, SearchSpace

EXPERIMENT = "moco_cifar10_cpu_sassl"


def space(base: ExperimentConfig) -> SearchSpace:
    """Sums of lower end and width reach 1, so that the whole range of blending can be found."""
    bank = base.sassl.bank
    sources: list[dict[str, Any]] = [{"style_source": "in_batch", "bank": None}]
    sources += [{"style_source": source, "bank": bank} for source in ("bank", "gaussian")] if bank else []
    stylizers = (base.stylize.name,) if bank else ("color_statistics", "swift")
    parameters = (
        Float(path="sassl.prob", low=0.0, high=1.0),
        Interval(path="sassl.alpha", low=(0.0, 0.7), width=(0.0, 0.3)),
        Interval(path="sassl.beta", low=(0.0, 0.7), width=(0.0, 0.3)),
        Choice(path="sassl.views", choices=("left", "right", "both")),
        Choice(path="sassl", name="style_source", choices=tuple(sources)),
        Choice(path="stylize", choices=stylizers),
    )
    return SearchSpace(parameters=tuple(p for p in parameters if not isinstance(p, Choice) or len(p.choices) > 1))
