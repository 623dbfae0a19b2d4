"""Self-supervised pretraining of image encoders on Ray, with style augmentation (SASSL) and feature augmentation (FA)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_sassl.export.encoder import Encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def load_encoder(path: str | os.PathLike[str], *, size_px: int | None = None) -> Encoder:
    """The encoder of a run (its newest sound checkpoint), of a checkpoint, or of a file that `ray-sassl export` wrote.

    It is a `torch.nn.Module` in evaluation mode, (B, 3, H, W) -> (B, num_features), and `encoder.preprocess` makes of an image (a PIL image, an
    array or a path) the (3, H, W) that it takes.

    Args:
        path: Local path or URI; for an export the file or its folder.
        size_px: Side of the images that it is given. By default the size that the run was evaluated at, or else trained at.

    Raises:
        UsageError: nothing is there, it holds no encoder, or it is damaged.
    """
    # By name and only now: torch takes seconds to import, and whoever asks this package for its version must not reach it.
    return importlib.import_module("ray_sassl.export.encoder").load_encoder(path, size_px=size_px)
