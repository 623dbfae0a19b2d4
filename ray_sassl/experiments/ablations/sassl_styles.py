"""SASSL: styles of the batch, of a bank, and of the Gaussian of a bank.

The bank is the user's: `sassl.style_source=bank sassl.bank=styles.safetensors`, made by `ray-sassl stylize bank` with the base experiment's
stylizer.
"""

from __future__ import annotations

import json

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import Arm, sized
from ray_sassl.process.errors import UsageError

EXPERIMENTS = sized("moco", "_sassl")


def arms(base: ExperimentConfig) -> list[Arm]:
    """Against no style, and external styles against those of the batch too."""
    bank = base.sassl.bank
    if bank is None:
        raise UsageError("this table needs a bank of styles: sassl.style_source=bank sassl.bank=FILE (`ray-sassl stylize bank` makes one)")
    sources = {
        source: {"style_source": source, "bank": None if source == "in_batch" else bank} for source in ("in_batch", "bank", "gaussian")
    }
    none, in_batch = "no style", "in_batch"
    return [
        Arm(none, ("stylize=identity",)),
        *(
            Arm(name, (f"sassl={json.dumps(sassl)}",), against=(none,) if name == in_batch else (none, in_batch))
            for name, sassl in sources.items()
        ),
    ]
