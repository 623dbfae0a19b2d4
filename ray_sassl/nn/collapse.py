"""Metrics that show a collapse of features or embeddings."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from ray_sassl.nn.gather import all_gather, world_size

ENOUGH_EMBEDDINGS = 2048
"""How many embeddings the metrics of a run are computed over, once it has had so many."""


class NewestEmbeddings:
    """The newest embeddings of all workers, kept over steps. Nothing waits for the device before `gathered`."""

    def __init__(self, num: int = ENOUGH_EMBEDDINGS) -> None:
        self._num = -(-num // world_size())
        self._parts: deque[Tensor] = deque()

    def add(self, embeddings: Tensor) -> None:
        """Keep this worker's embeddings (B, D), and drop the oldest that are no longer needed."""
        self._parts.append(embeddings.detach())
        while sum(map(len, self._parts)) - len(self._parts[0]) >= self._num:
            self._parts.popleft()

    def gathered(self) -> Tensor:
        """(N, D) of all workers, equal on all of them: at least `num` if there were so many. Every worker must call it."""
        return all_gather(torch.cat(list(self._parts)))


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over the batch of the l2-normalized embeddings (B, D), times sqrt(D).

    1 for embeddings spread evenly over the sphere, 0 for collapsed ones (Chen and He 2021, arXiv 2011.10566, section 4.1).
    """
    z = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return z.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5


def effective_rank(embeddings: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe of the embeddings (B, D): exp of the entropy of the normalized singular values (Garrido et al. 2023, arXiv 2210.02885, eq. 1).

    At most min(B, D), so it is a lower bound for that of a data set, the closer the more embeddings there are. NaN where an embedding is
    not finite.
    """
    if not torch.isfinite(embeddings).all():  # the decomposition would raise, and hide that the run has diverged
        return embeddings.new_full((), math.nan, dtype=torch.float32)
    z = embeddings.double()
    squares = torch.linalg.eigvalsh(z.T @ z if len(z) > z.shape[1] else z @ z.T)  # much quicker than their roots, the singular values
    singular = squares.clamp(min=0).sqrt().float()
    p = singular / (singular.sum() + epsilon) + epsilon
    return torch.exp(-(p * p.log()).sum())
