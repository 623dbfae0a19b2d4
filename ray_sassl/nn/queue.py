"""The queue of MoCo: embeddings of earlier batches, first in, first out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NO_SAMPLE = -1
"""The sample id of a row that no sample's embedding is stored in."""


class EmbeddingQueue(nn.Module):
    """A ring buffer of unit vectors with their sample ids, all in the state dict.

    It starts with random directions that belong to no sample. Writing wraps around, so nothing is dropped if the size is not a multiple of
    the batch.
    """

    embeddings: Tensor
    sample_id: Tensor
    position: Tensor

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("embeddings", F.normalize(torch.randn(size, embedding_size), dim=1))
        self.register_buffer("sample_id", torch.full((size,), NO_SAMPLE, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def read(self) -> tuple[Tensor, Tensor]:
        """Copies of the embeddings (size, D) and their sample ids (size,); autograd needs copies that a later `write` does not change."""
        return self.embeddings.clone(), self.sample_id.clone()

    @torch.no_grad()
    def write(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        """Replace the oldest rows by (N, D) new ones, which must be equal on all workers; of more than `size` only the last are kept."""
        if sample_id is None:
            sample_id = self.sample_id.new_full((len(embeddings),), NO_SAMPLE)
        embeddings, sample_id = embeddings[-self.size :], sample_id[-self.size :]
        rows = (self.position + torch.arange(len(embeddings), device=self.position.device)) % self.size
        self.embeddings.index_copy_(0, rows, embeddings.to(self.embeddings.dtype))
        self.sample_id.index_copy_(0, rows, sample_id)
        self.position.add_(len(embeddings)).remainder_(self.size)
