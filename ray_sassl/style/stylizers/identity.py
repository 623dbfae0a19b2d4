"""No style transfer: images are returned unchanged."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ray_sassl.style.stylizers import Stylizer, StylizerConfig


class Config(StylizerConfig):
    """Switches style augmentation off."""

    is_identity: ClassVar[bool] = True

    def build(self, device: torch.device) -> Identity:
        return Identity()


class Identity(Stylizer):
    """Codes of width zero and a renderer that changes nothing."""

    bundle_id = "identity"
    code_size = 0

    def embed(self, images: Tensor) -> Tensor:
        return images.new_zeros((len(images), 0), dtype=torch.float32)

    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        return images
