"""Swapping: random dimensions of an embedding are taken from another sample's.

CutMix (Yun et al. 2019, arXiv 1905.04899) for embeddings; these have no spatial structure, so each dimension is chosen independently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ray_sassl.feature_aug.draws import ShareInterval, uniform
from ray_sassl.feature_aug.partners import PartnerAugmentation, PartnerConfig


class Config(PartnerConfig):
    """Swapping of dimensions.

    Attributes:
        share: The probability of each dimension to be the partner's, drawn uniformly from this interval for each feature; by default at
            most half, so that the embedding keeps the greater part (our choice).
    """

    share: ShareInterval = (0.0, 0.5)

    def build(self, embedding_size: int, num_samples: int) -> Swap:
        return Swap(self, embedding_size, num_samples)

    def weakest(self) -> Config:
        return self.model_copy(update={"share": (0.0, 0.0)})

    @classmethod
    def search_ranges(cls) -> dict[str, tuple[float, float]]:
        return {"share": (0.0, 0.4)}


class Swap(PartnerAugmentation[Config]):
    """Some dimensions of z are replaced by those of its partner, which has z's length; gradients pass to z through the others."""

    def mix(self, embeddings: Tensor, partners: Tensor, generator: torch.Generator) -> Tensor:
        least, most = self.config.share
        share = least + (most - least) * uniform(self.num_samples, embeddings, generator)  # (K, B)
        is_swapped = uniform(self.num_samples, embeddings, generator, embeddings.shape[1:]) < share[:, :, None]
        return torch.where(is_swapped, partners, embeddings)
