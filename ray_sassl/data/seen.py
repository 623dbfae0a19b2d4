"""Which samples of which epoch a run has trained on: what makes a resumed run see every sample exactly once."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


class SeenIds:
    """One bitmap an epoch over the data set's rows.

    Ranks may cross an epoch's end at different steps, so several epochs can be open at once. An epoch of which every row was seen costs
    nothing; one with a few rows missing (because they could not be decoded) costs a few bytes in a checkpoint.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._bitmaps: dict[int, np.ndarray] = {}
        self._complete: set[int] = set()

    def add(self, epoch: np.ndarray, sample_id: np.ndarray) -> None:
        """Mark samples as seen.

        Args:
            epoch: (B,) int64.
            sample_id: (B,) int64.
        """
        for number in set(np.unique(epoch).tolist()) - self._complete:
            bitmap = self._bitmaps.setdefault(number, np.zeros(self.num_rows, bool))
            bitmap[sample_id[epoch == number]] = True
            if bitmap.all():
                self._complete.add(number)
                del self._bitmaps[number]

    def merge(self, others: Iterable[SeenIds]) -> None:
        """Mark as seen here what any of the others has seen."""
        for other in others:
            self._complete |= other._complete
            for number, bitmap in other._bitmaps.items():
                mine = self._bitmaps.setdefault(number, np.zeros(self.num_rows, bool))
                mine |= bitmap
        for number in [n for n, bitmap in self._bitmaps.items() if n in self._complete or bitmap.all()]:
            self._complete.add(number)
            del self._bitmaps[number]

    def count(self, epoch: int) -> int:
        """How many of the epoch's rows were seen."""
        if epoch in self._complete:
            return self.num_rows
        return int(self._bitmaps[epoch].sum()) if epoch in self._bitmaps else 0

    def unseen(self, epoch: int, sample_id: np.ndarray) -> np.ndarray:
        """(B,) bool: which of the samples the epoch has still to see."""
        if epoch in self._complete:
            return np.zeros(len(sample_id), bool)
        return ~self._bitmaps[epoch][sample_id] if epoch in self._bitmaps else np.ones(len(sample_id), bool)

    def is_touched(self, epoch: int) -> bool:
        """Whether any row of the epoch was seen."""
        return epoch in self._complete or epoch in self._bitmaps

    def copy(self) -> SeenIds:
        """The same record, which changes of this one do not reach."""
        copy = SeenIds(self.num_rows)
        copy._bitmaps = {number: bitmap.copy() for number, bitmap in self._bitmaps.items()}
        copy._complete = set(self._complete)
        return copy

    def encode(self) -> bytes:
        """A JSON file; equal records have equal bytes."""
        packed = {
            number: base64.b64encode(zlib.compress(np.packbits(bitmap).tobytes(), 1)).decode()
            for number, bitmap in sorted(self._bitmaps.items())
        }
        return json.dumps({"num_rows": self.num_rows, "complete": sorted(self._complete), "open": packed}).encode()

    @classmethod
    def decode(cls, content: bytes) -> SeenIds:
        """The inverse of `encode`."""
        tree = json.loads(content)
        opened = {int(number): base64.b64decode(packed) for number, packed in tree["open"].items()}
        return cls.from_state_dict(tree | {"open": opened})

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SeenIds:
        """The record of a checkpoint that has it in state.pt: `num_rows`, `complete` epochs, and a compressed bitmap of each `open` one."""
        seen = cls(state["num_rows"])
        seen._complete = set(state["complete"])
        for number, packed in state["open"].items():
            bits = np.frombuffer(zlib.decompress(packed), np.uint8)
            seen._bitmaps[number] = np.unpackbits(bits, count=seen.num_rows).astype(bool)
        return seen
