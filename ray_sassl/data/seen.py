"""Which samples of which epoch a run has trained on, so that a resumed run sees every sample exactly once."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ray_sassl.files.json_files import parse_json

_FEW = 32
"""An epoch is kept as the list of its missing rows if at most one row in so many is missing; the list then has no more bytes than a
bitmap."""
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)

_MOST_EPOCHS = 10_000_000
"""Of a record that is read: a few bytes may stand for any number."""


class SeenIds:
    """The samples that were seen in each epoch: a bitmap over the data set's rows, or the list of missing rows when these are few.

    Ranks may cross an epoch's end at different steps, so several epochs can be open at once. A complete epoch costs nothing. Rows that can
    never be seen (because they cannot be decoded) cost four bytes each, once for all epochs that lack the same rows.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._dtype = np.uint32 if num_rows < 2**32 else np.uint64
        self._bitmaps: dict[int, np.ndarray] = {}
        """By epoch: (num_rows / 8,) uint8, the first row in the highest bit. The bits after the last row are set."""
        self._num_seen: dict[int, int] = {}
        """By epoch: number of rows set in its bitmap."""
        self._missing: dict[int, np.ndarray] = {}
        """By epoch: (n,) the rows that were not seen, ascending. Arrays are never changed in place, since epochs and copies share them."""

    def add(self, epoch: np.ndarray, sample_id: np.ndarray) -> None:
        """Mark samples as seen.

        Args:
            epoch: (B,) int64.
            sample_id: (B,) int64.
        """
        for number in _distinct(epoch).tolist():
            self._add(number, _distinct(sample_id[epoch == number]))

    def add_to_touched(self, sample_id: np.ndarray) -> None:
        """Mark samples (B,) as seen in every epoch that has a seen row."""
        ids = _distinct(sample_id)
        rests: dict[int, np.ndarray] = {}
        for number in self.touched():
            if (missing := self._missing.get(number)) is None:
                self._add(number, ids)
            elif id(missing) in rests:
                self._missing[number] = rests[id(missing)]
            else:
                rests[id(missing)] = missing[~_is_in(ids, missing)]
                self._put_missing(number, rests[id(missing)])

    def merge(self, others: Iterable[SeenIds]) -> None:
        """Mark as seen what any of the others has seen."""
        for other in others:
            for number, missing in list(other._missing.items()):
                if number in self._bitmaps or number in self._missing:
                    missing = self._unseen_of(number, missing)
                self._put_missing(number, missing)
            for number, bitmap in list(other._bitmaps.items()):
                if number in self._missing:
                    self._put_missing(number, self._missing[number][~_is_set(bitmap, self._missing[number])])
                else:
                    self._put_bitmap(number, self._bitmap(number) | bitmap)

    def count(self, epoch: int) -> int:
        """How many of the epoch's rows were seen."""
        if epoch in self._missing:
            return self.num_rows - len(self._missing[epoch])
        return self._num_seen.get(epoch, 0)

    def unseen(self, epoch: int, sample_id: np.ndarray) -> np.ndarray:
        """(B,) bool: which of the samples were not seen in the epoch."""
        if epoch in self._missing:
            return _is_in(self._missing[epoch], sample_id)
        return ~_is_set(self._bitmaps[epoch], sample_id) if epoch in self._bitmaps else np.ones(len(sample_id), bool)

    def is_touched(self, epoch: int) -> bool:
        """Whether any row of the epoch was seen."""
        return epoch in self._missing or epoch in self._bitmaps

    def touched(self) -> list[int]:
        """The epochs that have a seen row, ascending."""
        return sorted(self._missing.keys() | self._bitmaps.keys())

    def num_bytes(self) -> int:
        """Size of the record in memory."""
        lists = {id(missing): missing.nbytes for missing in self._missing.values()}
        return sum(lists.values()) + sum(bitmap.nbytes for bitmap in self._bitmaps.values())

    def copy(self) -> SeenIds:
        """A copy that is independent of this record."""
        copy = SeenIds(self.num_rows)
        copy._bitmaps = {number: bitmap.copy() for number, bitmap in self._bitmaps.items()}
        copy._num_seen = dict(self._num_seen)
        copy._missing = dict(self._missing)
        return copy

    def encode(self) -> bytes:
        """A JSON file, with spans [first, last] of epochs; equal records have equal bytes."""
        epochs_of: dict[bytes, list[int]] = {}
        for number, missing in sorted(self._missing.items()):
            if len(missing):
                epochs_of.setdefault(missing.tobytes(), []).append(number)
        lists = [
            {"epochs": _spans(epochs), "rows": _pack(np.diff(np.frombuffer(rows, self._dtype), prepend=self._dtype(0)))}
            for rows, epochs in epochs_of.items()
        ]
        tree = {
            "num_rows": self.num_rows,
            "complete": _spans(sorted(number for number, missing in self._missing.items() if not len(missing))),
            "missing": lists,
            "open": {number: _pack(bitmap) for number, bitmap in sorted(self._bitmaps.items())},
        }
        return json.dumps(tree).encode()

    @classmethod
    def decode(cls, content: bytes) -> SeenIds:
        """The inverse of `encode`; also reads earlier files, which have no lists of missing rows."""
        tree = parse_json(content, "the record of what was seen")
        opened = {int(number): base64.b64decode(packed) for number, packed in tree["open"].items()}
        seen = cls.from_state_dict(tree | {"open": opened, "complete": _numbers(tree["complete"])})
        for entry in tree.get("missing", []):
            missing = np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(entry["rows"])), seen._dtype), dtype=seen._dtype)
            seen._missing.update(dict.fromkeys(_numbers(entry["epochs"]), missing))
        return seen

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> SeenIds:
        """The record of a checkpoint that has it in state.pt: `num_rows`, `complete` epochs, and a compressed bitmap of each `open` one."""
        seen = cls(state["num_rows"])
        seen._missing = dict.fromkeys(state["complete"], np.empty(0, seen._dtype))
        for number, packed in state["open"].items():
            seen._put_bitmap(number, np.frombuffer(zlib.decompress(packed), np.uint8) | seen._bitmap(number))
        return seen

    def __reduce__(self) -> tuple[Any, ...]:
        return SeenIds.decode, (self.encode(),)

    def _add(self, number: int, ids: np.ndarray) -> None:
        """Mark the rows (n,), distinct and ascending, as seen in the epoch."""
        if number in self._missing:
            missing = self._missing[number]
            kept = ~_is_in(ids, missing)
            if not kept.all():
                self._put_missing(number, missing[kept])
            return
        bitmap = self._bitmaps.setdefault(number, self._bitmap(number))
        self._num_seen[number] = self._num_seen.get(number, 0) + int((~_is_set(bitmap, ids)).sum())
        np.bitwise_or.at(bitmap, ids >> 3, (128 >> (ids & 7)).astype(np.uint8))
        self._list_few(number)

    def _bitmap(self, number: int) -> np.ndarray:
        """The epoch's bitmap, or an empty one."""
        if number in self._bitmaps:
            return self._bitmaps[number]
        bitmap = np.zeros(-(-self.num_rows // 8), np.uint8)
        if self.num_rows % 8:
            bitmap[-1] = (1 << (-self.num_rows % 8)) - 1
        return bitmap

    def _put_bitmap(self, number: int, bitmap: np.ndarray) -> None:
        self._bitmaps[number] = bitmap
        self._num_seen[number] = int(_ONES[bitmap].sum(dtype=np.int64)) - (-self.num_rows % 8)
        self._list_few(number)

    def _list_few(self, number: int) -> None:
        """Keep the epoch as the list of its missing rows if these are few."""
        if (self.num_rows - self._num_seen[number]) * _FEW <= self.num_rows:
            self._put_missing(number, _zeros(self._bitmaps[number]).astype(self._dtype))

    def _put_missing(self, number: int, missing: np.ndarray) -> None:
        """Keep the epoch as this list; equal lists of consecutive epochs are kept once."""
        for neighbor in (number, number - 1, number + 1):
            if (known := self._missing.get(neighbor)) is not None and np.array_equal(known, missing):
                missing = known
                break
        self._missing[number] = missing
        self._bitmaps.pop(number, None)
        self._num_seen.pop(number, None)

    def _unseen_of(self, number: int, missing: np.ndarray) -> np.ndarray:
        """Those of the rows that are missing in the epoch here too."""
        return missing if missing is self._missing.get(number) else missing[self.unseen(number, missing)]


def _distinct(ids: np.ndarray) -> np.ndarray:
    """Like `numpy.unique`, which takes ten times as long in numpy 2.4."""
    ids = np.sort(ids)
    return ids[np.append(True, ids[1:] != ids[:-1])] if len(ids) else ids


def _is_set(bitmap: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the bits of the rows (n,) are set."""
    return (bitmap[ids >> 3] >> (7 - (ids & 7)).astype(np.uint8)) & 1 == 1


def _is_in(listed: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the rows (n,) are in the ascending list."""
    if not len(listed):
        return np.zeros(len(ids), bool)
    place = np.minimum(np.searchsorted(listed, ids.astype(listed.dtype)), len(listed) - 1)
    return listed[place] == ids


def _zeros(bitmap: np.ndarray) -> np.ndarray:
    """The rows whose bits are not set, ascending."""
    bytes_ = np.flatnonzero(bitmap != 255)
    bits = np.flatnonzero(np.unpackbits(bitmap[bytes_]) == 0)
    return bytes_[bits >> 3] * 8 + (bits & 7)


def _spans(numbers: list[int]) -> list[list[int]]:
    """The ascending numbers as [first, last] of each run of them."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return spans


def _numbers(spans: list[Any]) -> list[int]:
    """The inverse of `_spans`; also takes numbers.

    Raises:
        ValueError: they stand for more epochs than any run has.
    """
    if sum(1 if isinstance(span, int) else span[1] - span[0] + 1 for span in spans) > _MOST_EPOCHS:
        raise ValueError(f"it tells of more than {_MOST_EPOCHS:,} epochs")
    return [number for span in spans for number in ([span] if isinstance(span, int) else range(span[0], span[1] + 1))]


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()
