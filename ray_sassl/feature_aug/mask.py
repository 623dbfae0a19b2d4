"""Masking: random dimensions of an embedding are set to zero."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.feature_aug.draws import uniform


class Config(FeatureAugConfig):
    """Masking.

    Attributes:
        mask_prob: The probability of each dimension of each feature to be set to zero. 0.2 is our choice: it leaves a cosine similarity of
            about sqrt(1 - mask_prob) = 0.89 to the original.
        rescale: Divide the remaining dimensions by 1 - mask_prob, as in dropout, so that the expected feature is the embedding. On a loss
            of cosine similarities this has an effect only through a predictor.
    """

    mask_prob: float = Field(default=0.2, ge=0, lt=1)
    rescale: bool = False

    def build(self, embedding_size: int, num_samples: int) -> Mask:
        return Mask(self, num_samples)

    def weakest(self) -> Config:
        return self.model_copy(update={"mask_prob": 0.0})

    @classmethod
    def search_ranges(cls) -> dict[str, tuple[float, float]]:
        return {"mask_prob": (0.0, 0.8)}


class Mask(FeatureAugmentation):
    """Each dimension is dropped independently; gradients pass through the remaining ones. An embedding's length does not matter."""

    def __init__(self, config: Config, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        features = repeated(embeddings, self.num_samples)
        if not self.training:
            return features
        is_masked = uniform(self.num_samples, embeddings, generator, embeddings.shape[1:]) < self.config.mask_prob  # (K, B, D)
        features = features.masked_fill(is_masked, 0)
        return features / (1 - self.config.mask_prob) if self.config.rescale else features
