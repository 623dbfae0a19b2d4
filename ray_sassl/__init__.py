"""Self-supervised pretraining of image encoders on Ray, with style augmentation (SASSL) and feature augmentation (FA).

Everything that the command line does is a function here: `ray_sassl.pretrain(...)`, `ray_sassl.evaluate(...)`,
`ray_sassl.load_encoder(...)` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_sassl.api import __all__ as __all__
from ray_sassl.api import __dir__ as __dir__
from ray_sassl.api import __getattr__ as __getattr__

if TYPE_CHECKING:
    from ray_sassl.api import *

__version__ = "0.1.0"
