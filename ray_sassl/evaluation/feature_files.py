"""Features as files that are mapped into memory: what a file holds is read when it is looked at, and takes no memory of the process.

A kept file is a safetensors file with the tensors `features` (float16), `label` and `sample_id`, so other programs read it too. Half
precision keeps features to 1 in 2,000, which moves scores by hundredths of a point; features that would not fit into it (beyond 65,504, or
all of them tiny) stay float32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.evaluation.rows import CHUNK_BYTES, pieces, release, rows_of
from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir
from ray_sassl.files.safetensors_header import MAX_BYTES, read_header
from ray_sassl.process.errors import UsageError

_LARGEST, _SMALLEST = 65_504.0, 2.0**-6
"""A portion fits into float16 if its largest value lies between these: many below it would lose their digits."""
_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_TENSORS = ("features", "label", "sample_id")


class FeatureSpill:
    """Portions of features, in any order, in a temporary file that is gone with the process.

    Args:
        dtype: float16, or float32 for what must stay exact.
    """

    def __init__(self, dtype: str = "float16") -> None:
        self._dtype = np.dtype(dtype)
        self._file = _temporary()
        self._labels: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._width = 0

    @property
    def num_rows(self) -> int:
        """That have come so far."""
        return sum(map(len, self._ids))

    def add(self, part: LabeledFeatures) -> None:
        """Take a portion in."""
        self._width = part.features.shape[1]
        if self._dtype == np.float16 and not _fits(part.features):
            self._become_float32()
        with _room_for(len(part.labels) * self._width * self._dtype.itemsize):
            self._file.write(np.ascontiguousarray(part.features, self._dtype).data)
        self._labels.append(part.labels)
        self._ids.append(part.sample_id)

    def result(self) -> LabeledFeatures:
        """All portions in the order of their ids; the features are a mapped file."""
        order = np.argsort([ids[0] for ids in self._ids], kind="stable")
        ends = np.cumsum([len(ids) for ids in self._ids])
        features = self._mapped(int(ends[-1]))
        if not np.array_equal(order, np.arange(len(order))):
            sorted_file = _temporary()
            with _room_for(features.nbytes):
                for place in order:
                    sorted_file.write(features[ends[place] - len(self._ids[place]) : ends[place]].data)
                    release(features)
            self._file = sorted_file
            features = self._mapped(int(ends[-1]))
        labels, ids = (np.concatenate([column[place] for place in order]) for column in (self._labels, self._ids))
        return LabeledFeatures(features, labels, ids)

    def _mapped(self, num_rows: int) -> np.memmap:
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=(num_rows, self._width))

    def _become_float32(self) -> None:
        num_rows = self.num_rows
        before, self._dtype = self._dtype, np.dtype(np.float32)
        if num_rows:
            self._file.flush()
            old = np.memmap(self._file, before, "r", shape=(num_rows, self._width))
            self._file = _temporary()
            for piece in pieces(num_rows, rows_of(CHUNK_BYTES, self._width)):
                self._file.write(old[piece].astype(np.float32).data)


def write_features(file: IO[bytes], part: LabeledFeatures, metadata: dict[str, str]) -> None:
    """Write a kept file, a chunk at a time."""
    features = part.features if part.features.dtype == np.float16 else _halved(part.features)
    columns = {"features": features, "label": part.labels.astype("<i8"), "sample_id": part.sample_id.astype("<i8")}
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, column in columns.items():
        header[name] = {"dtype": names[column.dtype], "shape": list(column.shape), "data_offsets": [end, end := end + column.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for piece in pieces(len(features), rows_of(CHUNK_BYTES, features.shape[1])):
        file.write(np.ascontiguousarray(features[piece]).data)
        release(features)
    for name in _TENSORS[1:]:
        file.write(np.ascontiguousarray(columns[name]).data)


def read_features(path: str) -> tuple[LabeledFeatures, dict[str, str]]:
    """What a kept file holds, with its metadata; the features are mapped, those of a file on an object store after a copy to this machine.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    local = storage.local_path(path)
    if local is not None and local.exists() and not local.is_file():
        raise ValueError("it is not a file")
    with _temporary() if local is None else local.open("rb") as file:
        if local is None:
            filesystem, inner = storage.filesystem_of(path)
            with filesystem.open_input_stream(inner, compression=None) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    file.write(chunk)
            file.flush()
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = read_header(file.read(8 + min(length, MAX_BYTES, size)), path)
        features, labels, ids = (_tensor(file, header.entries.get(name), header.end, size, name) for name in _TENSORS)
    if features.ndim != 2 or labels.shape != features.shape[:1] or ids.shape != labels.shape:
        raise ValueError(f"its tensors have the shapes {features.shape}, {labels.shape} and {ids.shape}")
    return LabeledFeatures(features, np.array(labels), np.array(ids)), header.metadata


def _tensor(file: IO[bytes], entry: Any, begin: int, size: int, name: str) -> np.ndarray:
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        raise ValueError(f"it has no tensor {name!r} of a known type")
    dtype, shape, offsets = _DTYPES[entry["dtype"]], _counts(entry, "shape"), _counts(entry, "data_offsets")
    num_bytes = dtype.itemsize * int(np.prod([1, *shape], dtype=object))
    if len(offsets) != 2 or offsets[1] - offsets[0] != num_bytes or begin + offsets[1] > size:
        raise ValueError(f"the bytes of {name!r} are not all there")
    if num_bytes == 0:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset=begin + offsets[0], shape=tuple(shape))


def _counts(entry: dict[str, Any], name: str) -> list[int]:
    numbers = entry.get(name)
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{name} is not a list of counts")
    return numbers


def _fits(features: np.ndarray) -> bool:
    largest = float(np.abs(features).max(initial=0))
    return not (largest > _LARGEST or 0 < largest < _SMALLEST)


def _halved(features: np.ndarray) -> np.ndarray:
    """As float16 if they fit, else as float32."""
    at_once = rows_of(CHUNK_BYTES, features.shape[1])
    fits = all(_fits(features[piece]) for piece in pieces(len(features), at_once))
    return features.astype("<f2" if fits else "<f4", copy=False)


def _temporary() -> IO[bytes]:
    folder = cache_dir() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


@contextmanager
def _room_for(num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"features cannot be written to {cache_dir()} ({error}; {num_bytes / 1e9:.2f} GB more were to be): free some room, or name "
            "another folder by RAY_SASSL_CACHE"
        ) from error
