"""WebDataset shards: tar files in which consecutive members with one base name make a sample.

For the index only the 512-byte headers are walked (and the short label members read); a row group is a run of samples that is fetched
by one range read. Nothing is ever extracted, and members that could do harm elsewhere are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from ray_sassl.data import (
    GROUP_ROWS,
    GROUP_SCHEMA,
    IMAGE_EXTENSIONS,
    NO_LABEL,
    DataConfig,
    ParallelMap,
    Reader,
    Rows,
    Scan,
    SourceFile,
)
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.plugins import UsageError

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_BLOCK = 512
_LOCAL_WINDOW, _REMOTE_WINDOW = 4096, 4 * 2**20
_MAX_LABEL_BYTES = 64
_MAX_NAME_BYTES = 2**20
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}
_REGULAR, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"K", b"x", b"g"
_ROW_SCHEMA = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.int64())])


@dataclass(frozen=True)
class Member:
    """A regular file in a shard: its name, and where its content is."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


@dataclass
class _Sample:
    """A sample while its members are met; `offset` is -1 as long as no image was."""

    key: str
    start: int
    stop: int = 0
    offset: int = -1
    size: int = 0
    label: int = NO_LABEL
    extensions: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Shard:
    """What a shard holds: `groups` are the byte ranges and lengths of its runs, `rows` a table of `_ROW_SCHEMA`."""

    groups: list[tuple[int, int, int]]
    rows: pa.Table
    problem: str | None
    ignored: Counter[str]


class WebDatasetReader(Reader):
    """Runs of up to `GROUP_ROWS` samples stand in for row groups. A cut-off shard keeps the samples that are whole."""

    def scan(self, files: Sequence[SourceFile], config: DataConfig, parallel: ParallelMap) -> Scan:
        def scan(file: SourceFile) -> _Shard:
            return storage.retried(file.entry.path, lambda: _scan_shard(file.entry.path, file.entry.size_bytes, config))

        shards = parallel(scan, files)
        groups = [(number, *group) for number, shard in enumerate(shards) for group in shard.groups]
        columns = [list(column) for column in zip(*groups, strict=True)] or [[]] * len(GROUP_SCHEMA)
        return Scan(
            pa.table(columns, schema=GROUP_SCHEMA),
            pa.concat_tables(shard.rows for shard in shards).combine_chunks(),
            problems=tuple(
                BadRow(file.entry.path, -1, -1, shard.problem) for file, shard in zip(files, shards, strict=True) if shard.problem
            ),
            ignored=dict(sum((shard.ignored for shard in shards), Counter())),
        )

    def read(self, index: Index, group: int) -> Rows:
        assert index.rows is not None
        file, start, stop = index.group_place(group)
        path = index.file_path(file)
        sample_id = index.sample_ids(group)
        rows = index.rows.slice(int(sample_id[0]), len(sample_id))
        key, offset, size = rows["key"].to_pylist(), rows["offset"].to_pylist(), rows["size"].to_pylist()
        data = _read_range(path, start, stop)
        place = index.rows_in_file(group)
        encoded: list[bytes | BadRow] = []
        for i in range(len(sample_id)):
            image = data[offset[i] - start : offset[i] - start + size[i]] if offset[i] >= 0 else b""
            reason = _what_is_wrong(offset[i], size[i], len(image))
            encoded.append(BadRow(path, int(place[i]), int(sample_id[i]), f"{reason} (sample {key[i]})") if reason else image)
        return Rows(sample_id, encoded, rows["label"].to_numpy(), [f"{path}#{name}" for name in key], [path] * len(key), place)

    def labels(self, index: Index) -> np.ndarray:
        assert index.rows is not None
        return index.rows["label"].to_numpy()

    def names(self, index: Index) -> list[str]:
        assert index.rows is not None
        return index.rows["key"].to_pylist()


def _what_is_wrong(offset: int, size: int, num_read: int) -> str | None:
    if offset < 0:
        return "the sample has no image member"
    if size == 0:
        return "the image is empty"
    return "the shard is cut off within this image" if num_read < size else None


def _read_range(path: str, start: int, stop: int) -> bytes:
    filesystem, inner = storage.filesystem_of(path)

    def read() -> bytes:
        with filesystem.open_input_file(inner) as file:
            return file.read_at(stop - start, start)

    return storage.retried(path, read)


def _scan_shard(path: str, size_bytes: int, config: DataConfig) -> _Shard:
    """The shard's samples; `problem` says where the shard is damaged, and what lies behind that is lost."""
    samples: list[_Sample] = []
    ignored: Counter[str] = Counter()
    problem = None
    filesystem, inner = storage.filesystem_of(path)
    with filesystem.open_input_file(inner) as file:
        source = _Windowed(file, size_bytes, _LOCAL_WINDOW if isinstance(filesystem, pafs.LocalFileSystem) else _REMOTE_WINDOW)
        try:
            for header_start, member in _members(source, path):
                key, extension = _split_name(member.name)
                if not samples or samples[-1].key != key or extension in samples[-1].extensions:
                    samples.append(_Sample(key, header_start))
                _add_member(samples[-1], extension, member, source, path, config, ignored)
        except _CutOffError as cut:
            problem = str(cut)
    runs = [samples[first : first + GROUP_ROWS] for first in range(0, len(samples), GROUP_ROWS)]
    rows = pa.table([[getattr(sample, name) for sample in samples] for name in _ROW_SCHEMA.names], schema=_ROW_SCHEMA)
    return _Shard([(run[0].start, run[-1].stop, len(run)) for run in runs], rows, problem, ignored)


def _add_member(
    sample: _Sample, extension: str, member: Member, source: _Windowed, path: str, config: DataConfig, ignored: Counter[str]
) -> None:
    sample.stop = member.end
    sample.extensions.add(extension)
    if extension in IMAGE_EXTENSIONS and sample.offset < 0:
        sample.offset, sample.size = member.offset, member.size
    elif extension == config.label_extension and config.label_column is not None:
        sample.label = _parse_label(source.read(member.offset, min(member.size, _MAX_LABEL_BYTES + 1)), member, path, config)
    else:
        ignored[extension or "no extension"] += 1


def _parse_label(text: bytes, member: Member, path: str, config: DataConfig) -> int:
    if len(text) < min(member.size, _MAX_LABEL_BYTES):
        return NO_LABEL  # the shard is cut off here, which is reported for the shard
    if re.fullmatch(rb"\s*-?\d{1,18}\s*", text):
        return int(text)
    raise UsageError(
        f"{path}: member {member.name!r} should hold a label as decimal text but holds {text[:40]!r}; data.label_extension="
        f"{config.label_extension!r} names the label members, and data.label_column=null takes the data set as unlabeled"
    )


class _CutOffError(Exception):
    """The shard ends, or turns into something else, where a header or a member should be."""


class _Windowed:
    """Reads of a few bytes from a file that is fetched in pieces: whole pages of a disk, megabytes of an object store."""

    def __init__(self, file: pa.NativeFile, size_bytes: int, window_bytes: int) -> None:
        self._file = file
        self._window_bytes = window_bytes
        self._start, self._data = 0, b""
        self.size_bytes = size_bytes

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._data):
            self._start, self._data = offset, self._file.read_at(max(size, self._window_bytes), offset)
        return self._data[offset - self._start : offset - self._start + size]


def _members(source: _Windowed, path: str) -> Iterator[tuple[int, Member]]:
    """The regular files of the shard, each with the place of its first header.

    Raises:
        UsageError: this is no tar file, or a member is one of those that are refused.
        _CutOffError: the shard is cut off or damaged here.
    """
    offset = start = 0
    long_name: str | None = None
    long_size: int | None = None
    is_ended = False
    while offset < source.size_bytes:
        header = source.read(offset, _BLOCK)
        if len(header) == _BLOCK and not any(header):
            is_ended, offset = True, offset + _BLOCK
            start = offset
            continue
        _check_header(header, offset, path)
        size, kind = _number(header[124:136]), header[156:157]
        content = offset + _BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > _MAX_NAME_BYTES:
                raise UsageError(f"{path}: the name at byte {offset:,} is {size:,} bytes long")
            text = source.read(content, size)
            if kind == _LONG_NAME:
                long_name = text.rstrip(b"\0").decode(errors="surrogateescape")
            elif kind == _PAX:
                records = _pax_records(text)
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if "size" in records else long_size
            offset = content + -(-size // _BLOCK) * _BLOCK
            continue
        name = long_name if long_name is not None else _short_name(header)
        member = Member(name, content, long_size if long_size is not None else size)
        _refuse_harmful(member.name, kind, path)
        if kind in _REGULAR:
            yield start, member
            if member.offset + member.size > source.size_bytes:
                raise _CutOffError(f"the shard is cut off at byte {source.size_bytes:,}, within member {member.name!r}")
            offset = member.end
        elif kind == _FOLDER:
            offset = content
        else:
            raise UsageError(f"{path}: member {member.name!r} has the unknown tar type {kind!r}")
        long_name = long_size = None
        start, is_ended = offset, False
    if not is_ended:
        raise _CutOffError(f"the shard ends at byte {source.size_bytes:,} without a tar file's end mark, so it may be cut off")


def _check_header(header: bytes, offset: int, path: str) -> None:
    if len(header) < _BLOCK:
        raise _CutOffError(f"the shard is cut off at byte {offset + len(header):,}, within a header")
    stated = header[148:156].strip(b" \0")
    if stated.isdigit() and int(stated, 8) == sum(header[:148]) + 8 * 32 + sum(header[156:]):
        return
    if offset == 0:
        kind = " but a gzip file; decompress it" if header[:2] == b"\x1f\x8b" else ""
        raise UsageError(f"{path} is not a tar file{kind}")
    raise _CutOffError(f"the shard is damaged at byte {offset:,}, where a header should be")


def _number(text: bytes) -> int:
    """A tar header's number: octal text, or base 256 where the first bit is set."""
    if text[0] & 0x80:
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
    return int(text.strip(b" \0") or b"0", 8)


def _short_name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


def _pax_records(text: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while match := re.match(rb"(\d+) ([^=]+)=", text):
        length = int(match[1])
        records[match[2].decode()] = text[match.end() : length - 1].decode(errors="surrogateescape")
        text = text[max(length, match.end()) :]
    return records


def _refuse_harmful(name: str, kind: bytes, path: str) -> None:
    shown = f"{path}: member {name!r}"
    if kind in _REFUSED_TYPES:
        raise UsageError(f"{shown} is {_REFUSED_TYPES[kind]}; shards may hold regular files only")
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise UsageError(f"{shown} has an absolute name; names in a shard must be relative")
    if ".." in parts:
        raise UsageError(f"{shown} has '..' in its name, which leads out of the shard")
    if name.lower().rpartition(".")[2] in _PICKLES:
        raise UsageError(f"{shown} is a pickle, which can run code when it is loaded; write such fields as .json, .npy or .cls text")


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last component, and the extension is all that follows."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()
