"""Metrics that show a collapse of features or embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over the batch of the l2-normalized embeddings (B, D), times sqrt(D).

    1 for embeddings spread evenly over the sphere, 0 for collapsed ones (Chen and He 2021, arXiv 2011.10566, section 4.1).
    """
    z = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5


def effective_rank(embeddings: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe of the embeddings (B, D): exp of the entropy of the normalized singular values (Garrido et al. 2023, arXiv 2210.02885, eq. 1).

    At most min(B, D); computed on one worker's batch, so it is a lower bound for that of the data set. NaN where an embedding is not
    finite.
    """
    if not torch.isfinite(embeddings).all():  # the decomposition would raise, and hide that the run has diverged
        return embeddings.new_full((), math.nan, dtype=torch.float32)
    singular = torch.linalg.svdvals(embeddings.float())
    p = singular / (singular.sum() + epsilon) + epsilon
    return torch.exp(-(p * p.log()).sum())
