"""Self-supervised pretraining of image encoders on Ray, with style augmentation (SASSL) and feature augmentation (FA).

Everything that the command line does is a function here: `ray_sassl.pretrain(...)`, `ray_sassl.evaluate(...)`,
`ray_sassl.load_encoder(...)` and so on. They are those of `ray_sassl.api`, and `submit_job`, which takes a command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ray_sassl import api
from ray_sassl.process import job_secrets
from ray_sassl.process.version import __version__ as __version__

if TYPE_CHECKING:
    from ray_sassl.api import *
    from ray_sassl.cli.job_command import submit_job

job_secrets.take(Path(__file__).parent)  # before any library of a tracker or a store looks for its key

__all__ = ["submit_job"]
__all__ += api.__all__

__getattr__, __dir__ = api.lazily({**api.HOMES, "submit_job": "ray_sassl.cli.job_command"})
