"""Features in chunks, so that a computation has one chunk in memory and not the whole data set.

Features of whole data sets are float16 files that are mapped into memory (`feature_files.py`). Arithmetic is in float32, or float64 where
sums are long. Pages of a mapped file are given back to the system after each chunk; they stay in its cache as long as there is room.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np

CHUNK_BYTES = 2**26
"""Of the float32 rows that are worked on at a time."""
KEPT_BYTES = 2**28
"""Standardized rows of up to this size are computed once and kept; larger ones are computed from the features in each pass."""


def rows_of(num_bytes: int, width: int) -> int:
    """So many float32 rows of this width have that size; at least one."""
    return max(1, num_bytes // (4 * max(1, width)))


def pieces(num_rows: int, at_once: int) -> Iterator[slice]:
    """The rows, so many at once."""
    return (slice(start, min(start + at_once, num_rows)) for start in range(0, num_rows, at_once))


def chunks(features: np.ndarray, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Copies of the features (N, F) as float32, a chunk (n, F) at a time.

    Args:
        rows: (M,) int64: only these, in this order.
    """
    for piece in pieces(len(features) if rows is None else len(rows), rows_of(CHUNK_BYTES, features.shape[1])):
        yield np.array(features[piece] if rows is None else features[rows[piece]], np.float32)
        release(features)


def release(features: np.ndarray) -> None:
    """Give the pages of a mapped file back to the system; nothing happens to other arrays, or where the system has no such call."""
    mapped = getattr(features, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def mean_of(features: np.ndarray) -> np.ndarray:
    """(F,) float64, by feature."""
    return sum(chunk.sum(0, dtype=np.float64) for chunk in chunks(features)) / max(1, len(features))  # pyright: ignore[reportReturnType]


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) by feature; a constant feature has deviation 1, and so stays 0."""
    mean = mean_of(features)
    squares = np.zeros_like(mean)
    for chunk in chunks(features):
        squares += np.square(chunk - mean).sum(0)
    deviation = np.sqrt(squares / max(1, len(features)))
    return mean, np.where(deviation > 1e-6 * np.abs(mean) + 1e-12, deviation, 1.0)


class Rows:
    """Rows (N, F) of float32, standardized if moments are given; only the requested rows are in memory.

    Args:
        features: (N, F) of any float type; not changed.
        moments: Mean and deviation (F,).
        rows: (M,) int64: only these rows, in this order.
    """

    def __init__(self, features: np.ndarray, moments: tuple[np.ndarray, np.ndarray] | None = None, rows: np.ndarray | None = None) -> None:
        self._features, self._moments, self._rows = features, moments, rows
        self._kept: np.ndarray | None = None
        self._num_read = 0
        if len(self) <= rows_of(KEPT_BYTES, self.width):
            kept = np.empty((len(self), self.width), np.float32)
            for piece in pieces(len(self), rows_of(CHUNK_BYTES, self.width)):
                kept[piece] = self._read(features[piece] if rows is None else features[rows[piece]])
            self._kept = kept
            release(features)

    def __len__(self) -> int:
        return len(self._features if self._rows is None else self._rows)

    @property
    def width(self) -> int:
        """F."""
        return self._features.shape[1]

    @property
    def kept(self) -> np.ndarray | None:
        """All rows (N, F), if they are few enough to be kept."""
        return self._kept

    def __iter__(self) -> Iterator[np.ndarray]:
        """Chunks (n, F), in order."""
        if self._kept is not None:
            yield from (self._kept[piece] for piece in pieces(len(self), rows_of(CHUNK_BYTES, self.width)))
            return
        for chunk in chunks(self._features, self._rows):
            yield self._read(chunk)

    def take(self, places: np.ndarray) -> np.ndarray:
        """(n, F): the rows at these places."""
        if self._kept is not None:
            return self._kept[places]
        places = places if self._rows is None else self._rows[places]
        found = np.empty((len(places), self.width), np.float32)
        at_once = max(1, KEPT_BYTES // (mmap.PAGESIZE * _PAGES_OF_A_FAULT))  # rows at random bring their neighbors into memory
        for piece in pieces(len(places), at_once):
            found[piece] = self._read(self._features[places[piece]])
            self._num_read += piece.stop - piece.start
            if self._num_read >= at_once:
                self._num_read = 0
                release(self._features)
        return found

    def part(self, places: np.ndarray) -> Rows:
        """Some of the rows by their places, or by a (N,) bool mask."""
        places = np.flatnonzero(places) if places.dtype == bool else places
        return Rows(self._features, self._moments, places if self._rows is None else self._rows[places])

    def _read(self, features: np.ndarray) -> np.ndarray:
        if self._moments is None:
            return np.asarray(features, np.float32)
        mean, deviation = self._moments
        found = np.empty(features.shape, np.float32)
        for piece in pieces(len(features), max(1, 2**19 // self.width)):  # what is worked on stays in the processor's cache
            found[piece] = (features[piece] - mean) / deviation
        return found


_PAGES_OF_A_FAULT = 16
"""That Linux maps around a page of a file that is asked for."""


def as_rows(x: Rows | np.ndarray) -> Rows:
    """The array as rows that are used as they are."""
    return x if isinstance(x, Rows) else Rows(x)
