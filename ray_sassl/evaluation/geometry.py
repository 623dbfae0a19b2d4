"""Scores of how features are distributed on the sphere, and distances between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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
def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (M, k) and places (M, k) of the rows of the bank (N, F) that are nearest to queries (M, F), the nearest first.

    If the bank has fewer than k rows, all of them are returned.
    """
    columns = F.normalize(bank.float(), dim=1).T.contiguous()
    rows_at_once = max(1, MAX_SIMILARITIES // len(bank))
    # Fresh memory for each block would cost a fifth of the time.
    space = columns.new_empty(min(rows_at_once, len(queries)), len(bank))
    found = [
        torch.mm(block, columns, out=space[: len(block)]).topk(min(k, len(bank)), dim=1)
        for block in F.normalize(queries.float(), dim=1).split(rows_at_once)
    ]
    similarities, places = zip(*found, strict=True)
    return torch.cat(similarities), torch.cat(places)


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
