"""The control of an augmentation: the embedding itself stands where an augmented feature would.

Predictor, stop-gradients, directions and number of losses are those of the augmentation that it replaces, so that a run differs from its
control in what happens to the features and in nothing else. `identity` is the plain method: without stop-gradient, and with one loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated


class Config(FeatureAugConfig):
    """The control of another augmentation."""

    def build(self, embedding_size: int, num_samples: int) -> Control:
        return Control(num_samples)

    def weakest(self) -> Config:
        return self

    @classmethod
    def search_ranges(cls) -> None:
        """None: it has no strength to search."""


class Control(FeatureAugmentation):
    """The embeddings, K times; gradients pass."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        return repeated(embeddings, self.num_samples)
