"""Extrapolation: an embedding is moved away from another sample's."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugmentation, repeated
from ray_sassl.feature_aug.partners import LambdaConfig, Partners


class Config(LambdaConfig):
    """Extrapolation; the fields say which partner and how far."""

    def build(self, embedding_size: int, num_samples: int) -> Extrapolate:
        return Extrapolate(self, embedding_size, num_samples)


class Extrapolate(FeatureAugmentation):
    """(1 + lambda) z - lambda p, with p the partner of z, which has z's length and another sample's direction.

    The gradient passes to z, times 1 + lambda; p is a constant.
    """

    def __init__(self, config: Config, embedding_size: int, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples
        self.partners = Partners(config, embedding_size, num_samples)

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        if not self.training:
            return repeated(embeddings, self.num_samples)
        partners = self.partners(embeddings, generator, sample_id)  # (K, B, D)
        weight = self.config.draw_lambda(self.num_samples, embeddings, generator)  # (K, B, 1)
        return embeddings + weight * (embeddings - partners)

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        self.partners.remember(embeddings, sample_id)
