"""Gaussian noise, in each dimension proportional to the standard deviation of the embeddings."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.feature_aug.draws import normal
from ray_sassl.nn.gather import all_gather
from ray_sassl.nn.precision import at_least_float32


class Config(FeatureAugConfig):
    """Gaussian noise.

    Attributes:
        noise_std: Standard deviation of the noise, in units of each dimension's own over the global batch. 0.5 is our choice: for centered
            embeddings, the cosine similarity to the original is about 1 / sqrt(1 + noise_std^2) = 0.89.
    """

    noise_std: float = Field(default=0.5, ge=0)

    def build(self, embedding_size: int, num_samples: int) -> Noise:
        return Noise(self, num_samples)

    def weakest(self) -> Config:
        return self.model_copy(update={"noise_std": 0.0})

    @classmethod
    def search_ranges(cls) -> dict[str, tuple[float, float]]:
        return {"noise_std": (0.01, 2.0)}


class Noise(FeatureAugmentation):
    """Adds noise to embeddings of any length, in units of their spread; gradients pass, with the noise as a constant."""

    def __init__(self, config: Config, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        if not self.training:
            return repeated(embeddings, self.num_samples)
        scale = self.config.noise_std * at_least_float32(all_gather(embeddings)).std(dim=0, correction=0)  # (D,)
        draws = normal(self.num_samples, embeddings, generator, embeddings.shape[1:])  # (K, B, D)
        return embeddings + (scale * draws).to(embeddings.dtype)
