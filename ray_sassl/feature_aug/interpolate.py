"""Interpolation: an embedding is moved toward another sample's."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_sassl.feature_aug.partners import LambdaConfig, PartnerAugmentation


class Config(LambdaConfig):
    """Interpolation; the fields say which partner and how far."""

    def build(self, embedding_size: int, num_samples: int) -> Interpolate:
        return Interpolate(self, embedding_size, num_samples)


class Interpolate(PartnerAugmentation[Config]):
    """(1 - lambda) z + lambda p, with p the partner of z, which has z's length and another sample's direction.

    The gradient passes to z, times 1 - lambda; p is a constant.
    """

    def mix(self, embeddings: Tensor, partners: Tensor, generator: torch.Generator) -> Tensor:
        weight = self.config.draw_lambda(self.num_samples, embeddings, generator)  # (K, B, 1)
        return embeddings + weight * (partners - embeddings)
