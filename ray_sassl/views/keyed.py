"""Random numbers by key: a draw depends on what it is for, never on when, where or in which batch it is made.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorized in
NumPy. The key is the run's seed; the counter is made of the stream, the view, the epoch and the sample id. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_WORD = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_MAX_COUNT = 4 << 16

MAX_VIEWS = 256
"""The number of views of a sample that have streams of their own."""


class Stream(IntEnum):
    """What draws are for; `DrawKey` adds the view's number, so that each view has a stream of its own."""

    VIEW = 0
    STYLE = MAX_VIEWS
    STYLE_PARTNER = 2 * MAX_VIEWS


@dataclass(frozen=True, eq=False)
class DrawKey:
    """The key of the draws for one view of B samples.

    Attributes:
        seed: The run's seed; its low 64 bits count.
        epoch: (B,) integers or one integer, below 2^32.
        sample_id: (B,) integers.
        view: The view's number, below `MAX_VIEWS`: 0 is left, 1 is right, local crops follow.
    """

    seed: int
    epoch: np.ndarray | int
    sample_id: np.ndarray
    view: int = 0

    def uniform(self, stream: Stream, count: int) -> np.ndarray:
        """Uniform draws (B, count) float64 in [0, 1), with 32 random bits each; the first draws do not depend on `count`."""
        assert 0 <= self.view < MAX_VIEWS
        assert 0 < count <= _MAX_COUNT
        sample_id = np.asarray(self.sample_id).astype(np.uint64)
        num_blocks = -(-count // 4)
        shape = (len(sample_id), num_blocks)
        ids = np.broadcast_to(sample_id[:, None], shape)
        epochs = np.broadcast_to(np.asarray(self.epoch).astype(np.uint64), sample_id.shape)
        counter = (
            np.broadcast_to(np.arange(num_blocks, dtype=np.uint64) | np.uint64((stream + self.view) << 16), shape),
            np.broadcast_to(epochs[:, None], shape),
            ids & _LOW_WORD,
            ids >> _WORD_BITS,
        )
        words = philox4x32(counter, (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF))
        return np.stack(words, axis=-1).reshape(len(sample_id), 4 * num_blocks)[:, :count] * 2.0**-32

    def normal(self, stream: Stream, count: int) -> np.ndarray:
        """Standard normal draws (B, count) float64: the Box-Muller transform of pairs of uniform draws of the same stream."""
        draws = self.uniform(stream, 2 * (-(-count // 2)))
        radius, angle = np.sqrt(-2 * np.log1p(-draws[:, ::2])), 2 * np.pi * draws[:, 1::2]
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
        return pairs.reshape(len(draws), -1)[:, :count]


def philox4x32(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int], rounds: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four output words of Philox4x32 for every counter; words are uint64 arrays of one shape, with 32 bits used."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product_1 >> _WORD_BITS) ^ c1 ^ np.uint64(k0)
        c2 = (product_0 >> _WORD_BITS) ^ c3 ^ np.uint64(k1)
        c1 = product_1 & _LOW_WORD
        c3 = product_0 & _LOW_WORD
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3
