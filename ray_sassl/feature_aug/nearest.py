"""Nearest neighbors: each feature is an earlier embedding that is near to the sample's own.

Dwibedi, Aytar, Tompson, Sermanet and Zisserman 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
Representations" (NNCLR, arXiv 2104.14548), section 3.2.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.feature_aug.draws import some_of
from ray_sassl.feature_aug.support import SupportSet, neighbors_per_sample


class Config(FeatureAugConfig):
    """Nearest neighbors in a support set. No strength makes them the embedding itself.

    Attributes:
        support_size: How many embeddings are kept; 98,304 for ImageNet in NNCLR. The default is for a smaller data set, and
            our choice.
        top_k: The neighbors that a sample's features are drawn from, a different one for each feature; 0 means as many as there are
            features. With one feature that is the nearest neighbor of NNCLR.
        exclude_own: A sample's own earlier embeddings are not its neighbors. Differs from NNCLR, where the nearest embedding is the
            sample's own as soon as the support set reaches an epoch back.
    """

    support_size: int = Field(default=16384, ge=1)
    top_k: int = Field(default=0, ge=0)
    exclude_own: bool = True

    def build(self, embedding_size: int, num_samples: int) -> Nearest:
        return Nearest(self, embedding_size, num_samples)

    @classmethod
    def search_ranges(cls) -> dict[str, tuple[float, float]]:
        return {"support_size": (1024, 32768)}


class Nearest(FeatureAugmentation):
    """The search is by cosine similarity, and its results are the stored unit vectors.

    For a loss that normalizes features this is NNCLR's NN(z, Q), where all embeddings are normalized beforehand. A predictor receives unit
    vectors, not embeddings of their own length. The features are constants, so no gradient passes.
    """

    passes_gradient = False

    def __init__(self, config: Config, embedding_size: int, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples
        self.top_k = neighbors_per_sample(config.top_k, num_samples)
        self.support = SupportSet(config.support_size, embedding_size)
        self.support.check_has(self.top_k)
        self.neighbor_ids: Tensor | None = None
        """(B, top_k) int64, the samples of the neighbors that were found last, for the same-class rate."""

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        if not self.training:
            return repeated(embeddings, self.num_samples)
        nearest = self.support.nearest(embeddings, self.top_k, sample_id if self.config.exclude_own else None)  # (B, top_k)
        self.neighbor_ids = self.support.queue.sample_id[nearest]
        return self.support.directions[some_of(nearest, self.num_samples, generator)].to(embeddings.dtype)

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        self.support.remember(embeddings, sample_id)
