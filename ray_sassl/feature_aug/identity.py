"""No feature augmentation: every feature is the embedding itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated


class Config(FeatureAugConfig):
    """Switches feature augmentation off."""

    is_identity: ClassVar[bool] = True

    def build(self, embedding_size: int, num_samples: int) -> Identity:
        return Identity(num_samples)

    def weakest(self) -> Config:
        return self


class Identity(FeatureAugmentation):
    """The embeddings, K times; gradients pass."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        return repeated(embeddings, self.num_samples)
