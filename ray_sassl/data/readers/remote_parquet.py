"""Parquet files on an S3 store, by one request for the end of a file and one for each row group.

Footers are kept by each process, up to 64 MB of them. A row group's columns lie side by side in most files and are one range; a range of
more than 64 MB is read in parts of 32 MB, so that little more than the images is in memory.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from ray_sassl.files import storage
from ray_sassl.files.s3 import Stamp

_FOOTER_BYTES = 2**16
"""So many bytes at the end of a file are read first."""
_KEPT_BYTES = 2**26
_WHOLE_BYTES, _PART_BYTES = 2**26, 2**25
_GAP_BYTES = 2**20
"""Columns that are not read are read all the same if they are no larger, rather than by a further request."""
_BUFFER_BYTES = 2**20
_KEPT_PARTS = 3


def open_remote(path: str, stamp: Stamp) -> pq.ParquetFile:
    """The whole file, read where it is needed.

    Args:
        stamp: Its size; without a time of change, whatever the object is now.
    """
    condition = stamp if stamp.mtime_ns else None
    return pq.ParquetFile(
        pa.PythonFile(_Parts(path, stamp.size_bytes, condition), mode="r"), metadata=_metadata(path, stamp), pre_buffer=True
    )


def open_remote_group(path: str, stamp: Stamp, number: int, columns: Sequence[str]) -> pq.ParquetFile:
    """The file, of which the columns of one row group are read."""
    metadata = _metadata(path, stamp)
    spans = _spans(metadata, number, set(columns)) if number < metadata.num_row_groups else []
    file = _Parts(path, stamp.size_bytes, stamp, spans)
    return pq.ParquetFile(pa.PythonFile(file, mode="r"), metadata=metadata, pre_buffer=False, buffer_size=_BUFFER_BYTES)


def _spans(metadata: pq.FileMetaData, number: int, columns: set[str]) -> list[tuple[int, int]]:
    """Where the columns lie, in spans that are read by one request each."""
    group = metadata.row_group(number)
    chunks = []
    for place in range(group.num_columns):
        chunk = group.column(place)
        if chunk.path_in_schema.partition(".")[0] in columns:
            begin = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
            chunks.append((begin, begin + chunk.total_compressed_size))
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(chunks):
        if joined and begin <= joined[-1][1] + _GAP_BYTES:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return [
        (first, min(first + step, end))
        for begin, end in joined
        for step in ([end - begin] if end - begin <= _WHOLE_BYTES else [_PART_BYTES])
        for first in range(begin, end, max(1, step))
    ]


class _Parts(io.RawIOBase):
    """A file of which the given spans are read whole, when something of them is needed, and others as they are asked for.

    Args:
        stamp: What the object must be.
    """

    def __init__(self, path: str, size_bytes: int, stamp: Stamp | None, spans: Sequence[tuple[int, int]] = ()) -> None:
        self._path, self._size_bytes, self._stamp, self._spans = path, size_bytes, stamp, spans
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size_bytes if size < 0 else min(self._at + size, self._size_bytes)
        data = b"".join(self._pieces(self._at, stop))
        self._at += len(data)
        return data

    def _pieces(self, start: int, stop: int) -> list[bytes | memoryview]:
        pieces: list[bytes | memoryview] = []
        while start < stop:
            span = next((span for span in self._spans if span[0] <= start < span[1]), None)
            if span is None:
                pieces.append(storage.read_span(self._path, start, stop, self._stamp))
                break
            end = min(stop, span[1])
            pieces.append(memoryview(self._part(span))[start - span[0] : end - span[0]])
            start = end
        return pieces

    def _part(self, span: tuple[int, int]) -> bytes:
        if span not in self._kept:
            while len(self._kept) >= _KEPT_PARTS:
                self._kept.popitem(last=False)
            self._kept[span] = storage.read_span(self._path, *span, self._stamp)
        self._kept.move_to_end(span)
        return self._kept[span]


@dataclass
class _Footers:
    """The ends of files, of which those that were used last are kept; threads that need the same one wait for one request."""

    kept: OrderedDict[tuple[str, Stamp], Future[bytes]] = field(default_factory=OrderedDict)
    num_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, path: str, stamp: Stamp) -> bytes:
        """The footer with what frames it."""
        if not stamp.mtime_ns:  # of whatever the object is now
            return _read_footer(path, stamp)
        key = path, stamp
        with self.lock:
            if there := self.kept.get(key):
                self.kept.move_to_end(key)
            else:
                coming = self.kept[key] = Future[bytes]()
        if there is not None:
            return there.result()
        try:
            coming.set_result(_read_footer(path, stamp))
        except BaseException as error:
            with self.lock:
                del self.kept[key]
            coming.set_exception(error)
            raise
        with self.lock:
            self.num_bytes += len(coming.result())
            while self.num_bytes > _KEPT_BYTES and (oldest := next(iter(self.kept.items())))[1].done():
                del self.kept[oldest[0]]
                self.num_bytes -= len(oldest[1].result())
        return coming.result()


_footers = _Footers()


def _read_footer(path: str, stamp: Stamp) -> bytes:
    condition = stamp if stamp.mtime_ns else None
    size_bytes = stamp.size_bytes
    tail = storage.read_span(path, max(0, size_bytes - _FOOTER_BYTES), size_bytes, condition)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= size_bytes and tail.endswith(b"PAR1"):
        tail = storage.read_span(path, size_bytes - length, size_bytes, condition)
    return tail[-length:] if 8 < length <= len(tail) else tail


def _metadata(path: str, stamp: Stamp) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(_footers.of(path, stamp)))
