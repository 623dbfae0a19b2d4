"""Scores of how features are distributed on the sphere, and distances between them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.evaluation.rows import CHUNK_BYTES, KEPT_BYTES, pieces, release, rows_of

MAX_SIMILARITIES = 2**25
"""Similarities computed at a time (128 MiB in float32)."""
_ROWS_AT_ONCE = 1024


def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    """(B,) squared distances of positive pairs on the unit sphere, from features (B, F): their mean is the alignment loss.

    Wang and Isola 2020, arXiv 2005.10242, section 4.1 with alpha = 2. 0 is perfect, 2 is the value of unrelated directions, 4 the largest.
    """
    return (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(1)


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t d^2) over all pairs of different rows of (B, F), d their distance on the unit sphere.

    Wang and Isola 2020, arXiv 2005.10242, section 4.1. 0 if all features are equal; about -2t if they are spread evenly in
    many dimensions.
    """
    x = F.normalize(z.double(), dim=1)
    total = 0.0
    for start in range(0, len(x), _ROWS_AT_ONCE):
        similarity = x[start : start + _ROWS_AT_ONCE] @ x.T
        total += torch.exp(-t * (2 - 2 * similarity)).sum().item()
    pairs = len(x) * (len(x) - 1)
    return math.log((total - len(x)) / pairs)  # each row's distance from itself is 0, whose exponential is 1


@torch.inference_mode()
def nearest(
    queries: Tensor | np.ndarray, bank: Tensor | np.ndarray, k: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine similarities (M, k) and places (M, k) of the rows of the bank (N, F) that are nearest to queries (M, F), the nearest first.

    The bank is taken a chunk at a time, and of each chunk only what is nearer than before is kept.

    Args:
        queries: (M, F) of any float type.
        bank: (N, F) of any float type; if it has fewer than k rows, all of them are returned.
        device: Where to compute; not given: where the bank is.
    """
    device = device or (bank.device if isinstance(bank, Tensor) else "cpu")
    num_queries, num_rows, width = len(queries), len(bank), bank.shape[1]
    bank_at_once = min(num_rows, rows_of(CHUNK_BYTES, width))
    at_once = max(1, min(num_queries, MAX_SIMILARITIES // bank_at_once))
    similarity = torch.empty(num_queries, 0, device=device)
    places = torch.empty(num_queries, 0, dtype=torch.long, device=device)
    # Fresh memory for each block would cost a fifth of the time.
    space = torch.empty(at_once * bank_at_once, device=device)
    unit = _unit(queries, slice(None), device) if num_queries <= rows_of(KEPT_BYTES, width) else None
    for part in pieces(num_rows, bank_at_once):
        columns = _unit(bank, part, device).T.contiguous()
        num_kept = min(k, part.stop)
        nearer = torch.empty(num_queries, num_kept, device=device)
        nearer_places = torch.empty(num_queries, num_kept, dtype=torch.long, device=device)
        for block in pieces(num_queries, at_once):
            rows = unit[block] if unit is not None else _unit(queries, block, device)
            found = torch.mm(rows, columns, out=space[: len(rows) * columns.shape[1]].view(len(rows), -1))
            values, at = found.topk(min(k, columns.shape[1]), dim=1)
            if part.start:
                values, at = torch.cat([similarity[block], values], 1), torch.cat([places[block], at + part.start], 1)
                values, order = values.topk(num_kept, dim=1)
                at = at.gather(1, order)
            nearer[block], nearer_places[block] = values, at
        similarity, places = nearer, nearer_places
    return similarity, places


def _unit(x: Tensor | np.ndarray, rows: slice, device: torch.device | str) -> Tensor:
    """Some of the rows as float32 of unit length, on the device."""
    part = x[rows]
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(np.array(part, np.float32))
        release(x)  # pyright: ignore[reportArgumentType]
    return F.normalize(part.to(device).float(), dim=1)


def principal_components(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal components (B, count) of rows (B, F), and the shares (count,) of the variance that they hold.

    The sign of a component is such that its largest loading is positive.
    """
    x = z.double() - z.double().mean(0)
    variances, axes = torch.linalg.eigh(x.T @ x)
    variances, axes = variances.flip(0).clamp(min=0)[:count], axes.flip(1)[:, :count]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    total = x.square().sum().clamp(min=1e-300)
    return x @ (axes * signs), variances / total
