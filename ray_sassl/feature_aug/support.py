"""The support set: earlier embeddings, first in, first out, that neighbors and partners are chosen from.

Dwibedi et al. 2021 (arXiv 2104.14548), section 3.2. It is equal on all workers, is in the state dict, and starts with random directions
that belong to no sample, like the queue of NNCLR in public code; they are replaced within support_size / batch steps.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.nn.gather import all_gather
from ray_sassl.nn.nearest import nearest_rows
from ray_sassl.nn.precision import at_least_float32
from ray_sassl.nn.queue import EmbeddingQueue
from ray_sassl.process.errors import UsageError


class SupportSet(nn.Module):
    """`size` unit vectors of width `embedding_size`, with the sample id of each."""

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        self.size = size
        self.queue = EmbeddingQueue(size, embedding_size)

    @property
    def directions(self) -> Tensor:
        """The stored unit vectors (size, D); not a copy."""
        return self.queue.embeddings

    def check_has(self, top_k: int) -> None:
        """
        Raises:
            UsageError: fewer than `top_k` vectors are stored.
        """
        if top_k > self.size:
            raise UsageError(
                f"{top_k} neighbors of a sample are asked for (top_k, num_samples) of a support set of {self.size}; "
                f"set support_size={top_k} or more"
            )

    def nearest(self, embeddings: Tensor, top_k: int, sample_id: Tensor | None) -> Tensor:
        """The indices (B, top_k) of the stored vectors nearest to each embedding (B, D) by cosine.

        Args:
            embeddings: Of any length.
            top_k: At most `size`.
            sample_id: (B,), to leave out entries of the same sample; they come last if fewer than top_k others are stored.
        """
        return nearest_rows(unit_vectors(embeddings), self.directions, top_k, sample_id, self.queue.sample_id)

    def remember(self, embeddings: Tensor, sample_id: Tensor | None) -> None:
        """Replace the oldest vectors by the directions of the embeddings (B, D) of all workers."""
        self.queue.write(all_gather(unit_vectors(embeddings)), None if sample_id is None else all_gather(sample_id))


def unit_vectors(embeddings: Tensor) -> Tensor:
    """The directions (B, D) of embeddings, detached, at least float32; a zero stays zero."""
    return F.normalize(at_least_float32(embeddings.detach()), dim=1)


def neighbors_per_sample(top_k: int, num_samples: int) -> int:
    """From how many neighbors a sample's `num_samples` different ones are drawn; a `top_k` of 0 means `num_samples`.

    Raises:
        UsageError: there are fewer neighbors than samples.
    """
    if top_k and top_k < num_samples:
        raise UsageError(
            f"top_k={top_k} neighbors are too few for num_samples={num_samples} different ones; set top_k={num_samples} or more, or "
            "top_k=0 for num_samples"
        )
    return top_k or num_samples
