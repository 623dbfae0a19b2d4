"""FA: how many features each embedding has (K), and whether their losses are summed (free loss) or the features are averaged."""

from __future__ import annotations

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("simclr_fa")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Each against the control with as many losses: the sum of K losses is also a larger rate."""
    del base
    found = [Arm("1, control", _of(1, "mean", is_control=True)), Arm("1", _of(1, "mean"))]
    for number in (2, 4, 8):
        found += [
            Arm(f"{number}, mean", _of(number, "mean")),
            Arm(f"{number}, free, control", _of(number, "free", is_control=True)),
            Arm(f"{number}, free", _of(number, "free"), against=(f"{number}, free, control", "1")),
        ]
    return found


def _of(number: int, reduction: str, *, is_control: bool = False) -> tuple[str, ...]:
    control = ("method.fa.augmentation=control",) if is_control else ()
    return (f"method.fa.num_samples={number}", f"method.fa.reduction={reduction}", *control)
