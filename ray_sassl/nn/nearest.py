"""Nearest rows by cosine similarity, searched in blocks, so that memory does not grow with the number of rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_sassl.nn.precision import no_autocast

MAX_SIMILARITIES = {"cpu": 2**21, "cuda": 2**26}
"""Similarities computed at a time: 8 MiB of float32 on a CPU, to stay near its cache, and 256 MiB on a GPU."""


@torch.no_grad()
def nearest_rows(queries: Tensor, rows: Tensor, k: int, query_id: Tensor | None = None, row_id: Tensor | None = None) -> Tensor:
    """The indices (B, k) of the rows with the largest inner products with each query, in descending order.

    For vectors of equal length these are the nearest by angle and by Euclidean distance.

    Args:
        queries: (B, D).
        rows: (S, D) with S >= k.
        k: Rows per query.
        query_id: (B,) int64; with `row_id`, a query gets rows of its own id only if there are fewer than k others.
        row_id: (S,) int64.
    """
    block_size = max(1, MAX_SIMILARITIES.get(queries.device.type, MAX_SIMILARITIES["cpu"]) // max(1, len(queries)))
    queries = queries.to(rows.dtype)
    best = queries.new_empty((len(queries), 0))
    index = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    with no_autocast(queries):
        for start in range(0, len(rows), block_size):
            block = slice(start, start + block_size)
            similarity = queries @ rows[block].T  # (B, b)
            if query_id is not None and row_id is not None:
                similarity.masked_fill_(query_id[:, None] == row_id[block], -math.inf)
            of_block = similarity.topk(min(k, similarity.shape[1]), dim=1)
            candidates = torch.cat([best, of_block.values], dim=1)
            best, place = candidates.topk(min(k, candidates.shape[1]), dim=1)
            index = torch.cat([index, of_block.indices + start], dim=1).gather(1, place)
    return index
