"""Random draws for a worker's rows, made on the CPU for the global batch, so that they do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from ray_sassl.nn.gather import rank, world_size
from ray_sassl.nn.upload import upload

Share = Annotated[float, Field(ge=0, le=1)]


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"({interval[0]}, {interval[1]}) must be (smallest, largest); write ({interval[1]}, {interval[0]})")
    return interval


ShareInterval = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
"""(smallest, largest), both in [0, 1]."""


def uniform(num_samples: int, rows: Tensor, generator: torch.Generator, shape: Sequence[int] = ()) -> Tensor:
    """float32 (K, B, *shape) in [0, 1) for the rows (B, ...) of this worker, on their device."""
    return _own(torch.rand(num_samples, _global(rows), *shape, generator=generator), rows)


def normal(num_samples: int, rows: Tensor, generator: torch.Generator, shape: Sequence[int] = ()) -> Tensor:
    """(K, B, *shape) from the standard normal distribution, as in `uniform`."""
    return _own(torch.randn(num_samples, _global(rows), *shape, generator=generator), rows)


def beta(num_samples: int, rows: Tensor, generator: torch.Generator, a: float, b: float) -> Tensor:
    """(K, B) from Beta(a, b), as in `uniform`. torch's Beta takes no generator, so NumPy draws it, seeded by one draw of the generator."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    drawn = np.random.default_rng(seed).beta(a, b, (num_samples, _global(rows)))
    return _own(torch.from_numpy(drawn).float(), rows)


def integers(low: int, high: int, num_samples: int, rows: Tensor, generator: torch.Generator) -> Tensor:
    """(K, B) int64 from low to high - 1, as in `uniform`."""
    return _own(torch.randint(low, high, (num_samples, _global(rows)), generator=generator), rows)


def some_of(columns: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """(K, B): K <= k different entries of each row of `columns` (B, k), in random order."""
    order = uniform(1, columns, generator, columns.shape[1:])[0].argsort(dim=1)[:, :num_samples]
    return columns.gather(1, order).T


def _global(rows: Tensor) -> int:
    return world_size() * len(rows)


def _own(drawn: Tensor, rows: Tensor) -> Tensor:
    start = rank() * len(rows)
    return upload(drawn[:, start : start + len(rows)], rows.device)
