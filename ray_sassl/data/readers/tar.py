"""Find the members of untrusted tar files, by their 512-byte headers alone.

Every number in a header is checked before it is used, so that no shard can make the reader hang, jump back or allocate more memory than the
shard is large. Nothing is ever extracted, and members that could do harm elsewhere are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_sassl.process.errors import UsageError

_BLOCK = 512
_MAX_NAME_BYTES = 2**20
_MAX_SIZE_BYTES = 2**60
_ZEROS_AT_ONCE, _MOST_ZEROS = 2**20, 2**28
"""Zeros after an end mark: tars that were joined have some kilobytes of them, files with a place reserved for more may have terabytes."""
_PICKLES = (b"pkl", b"pickle", b"pyd", b"pth", b"pt")
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file that begins in another volume",
}
_NOT_TAR = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK\3\4": "zip",
    b"7z\xbc\xaf": "7z",
}
_REGULAR, _LISTING, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), (b"5", b"D", b"V"), b"L", b"K", b"x", b"g"
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]{1,4096})=")


@dataclass(frozen=True)
class Member:
    """A regular file in a shard: its name, and where its content is. Bytes of the name that are not UTF-8 are escaped, as in `\\xe9`."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.offset + _padded(self.size)


class CutOffError(Exception):
    """The shard ends, or turns into something else, where a header or a member should be."""


class WindowedFile:
    """Reads a few bytes at a time from a file that is fetched in larger pieces: pages of a disk, megabytes of an object store.

    Args:
        read: The bytes from one place to another.
    """

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, window_bytes: int) -> None:
        self._read = read
        self._window_bytes = window_bytes
        self._start, self._data = 0, b""
        self.size_bytes = size_bytes

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer at the end of the file."""
        if not self._start <= offset <= offset + size <= self._start + len(self._data):
            stop = min(offset + max(size, self._window_bytes), self.size_bytes)
            self._start, self._data = offset, self._read(offset, stop)
        return self._data[offset - self._start : offset - self._start + size]

    def after_zeros(self, offset: int) -> int:
        """Where the first block begins, from `offset` on, that is not all zeros; the end of the file if there is none.

        Raises:
            CutOffError: there are more zeros than any program pads with.
        """
        begin = offset
        while offset < self.size_bytes:
            data = self.read(offset, min(_ZEROS_AT_ONCE, self.size_bytes - offset))
            if not data:  # the file became shorter
                return self.size_bytes
            if rest := len(data.lstrip(b"\0")):
                return offset + (len(data) - rest) // _BLOCK * _BLOCK
            offset += len(data)
            if offset - begin > _MOST_ZEROS:
                raise CutOffError(
                    f"more than {_MOST_ZEROS >> 20} MB of zeros follow byte {begin:,}, and what may come after them is not read"
                )
        return offset


def members(source: WindowedFile, path: str) -> Iterator[Member]:
    """The regular files of the shard, in their order.

    Raises:
        UsageError: this is not a tar file, or a member is refused.
        CutOffError: the shard is cut off or damaged here.
    """
    offset = 0
    long_name: bytes | None = None
    long_size: int | None = None
    is_ended = is_sparse = False
    while offset < source.size_bytes:
        header = source.read(offset, _BLOCK)
        if len(header) == _BLOCK and not any(header):
            is_ended, offset = True, source.after_zeros(offset)
            continue
        _check_header(header, offset, path)
        size, kind = _number(header[124:136], offset), header[156:157]
        content = offset + _BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if size > _MAX_NAME_BYTES:
                raise UsageError(f"{path}: the name at byte {offset:,} is {size:,} bytes long")
            text = source.read(content, size)
            if kind == _LONG_NAME:
                long_name = text.rstrip(b"\0")
            elif kind == _PAX:
                records = _pax_records(text, offset)
                long_name = records.get(b"path", long_name)
                long_size = _pax_size(records[b"size"], offset) if b"size" in records else long_size
                is_sparse = any(key.startswith(b"GNU.sparse.") for key in records)
            offset = content + _padded(size)
            continue
        name = _short_name(header) if long_name is None else long_name
        _refuse_harmful(name, b"S" if is_sparse else kind, path)
        member = Member(name.decode(errors="backslashreplace"), content, size if long_size is None else long_size)
        if kind in _REGULAR:
            yield member
            if member.offset + member.size > source.size_bytes:
                raise CutOffError(f"the shard is cut off at byte {source.size_bytes:,}, within member {member.name!r}")
            offset = member.end
        elif kind in _LISTING:  # folders, what GNU tar notes of them, and the label of a volume
            offset = content if kind == b"5" else member.end
        else:
            raise UsageError(f"{path}: member {member.name!r} has the unknown tar type {kind!r}")
        long_name, long_size, is_ended, is_sparse = None, None, False, False
    if not is_ended:
        raise CutOffError(f"the shard ends at byte {source.size_bytes:,} without a tar file's end mark, so it may be cut off")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_header(header: bytes, offset: int, path: str) -> None:
    if len(header) < _BLOCK:
        raise CutOffError(f"the shard is cut off at byte {offset + len(header):,}, within a header")
    stated = header[148:156].strip(b" \0")
    if re.fullmatch(rb"[0-7]{1,8}", stated) and int(stated, 8) == sum(header[:148]) + 8 * 32 + sum(header[156:]):
        return
    if offset == 0:
        kind = next((name for magic, name in _NOT_TAR.items() if header.startswith(magic)), None)
        raise UsageError(f"{path} is not a tar file" + (f" but {kind}; unpack it" if kind else ""))
    raise CutOffError(f"the shard is damaged at byte {offset:,}, where a header should be")


def _number(text: bytes, offset: int) -> int:
    """A tar header's number: octal text, or base 256 if the first bit is set.

    Raises:
        CutOffError: it is neither, or negative, or larger than any file.
    """
    if text[0] & 0x80:
        value = int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        if value > _MAX_SIZE_BYTES:
            raise CutOffError(f"the shard is damaged at byte {offset:,}: no member has the size that its header states")
        return value
    digits = text.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise CutOffError(f"the shard is damaged at byte {offset:,}: the size {digits!r} is not an octal number")
    return int(digits or b"0", 8)


def _pax_size(text: bytes, offset: int) -> int:
    if not re.fullmatch(rb"\d{1,18}", text):
        raise CutOffError(f"the shard is damaged at byte {offset:,}: {text[:40]!r} is not a member's size")
    return int(text)


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(text: bytes, offset: int) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header.

    Raises:
        CutOffError: a record does not have this form.
    """
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(text):
        match = _PAX_RECORD.match(text, start)
        if match is None or not match.end() < start + int(match[1]) <= len(text):
            raise CutOffError(f"the shard is damaged at byte {offset:,}, in the extended header of a member")
        records[match[2]] = text[match.end() : start + int(match[1]) - 1]
        start += int(match[1])
    return records


def _refuse_harmful(name: bytes, kind: bytes, path: str) -> None:
    shown = f"{path}: member {name.decode(errors='backslashreplace')!r}"
    if kind in _REFUSED_TYPES:
        raise UsageError(f"{shown} is {_REFUSED_TYPES[kind]}; shards may hold regular files only")
    if name.startswith((b"/", b"\\")) or re.match(rb"[A-Za-z]:[\\/]", name):
        raise UsageError(f"{shown} has an absolute name; names in a shard must be relative")
    if b".." in name.replace(b"\\", b"/").split(b"/"):
        raise UsageError(f"{shown} has '..' in its name, which leads out of the shard")
    if name.lower().rpartition(b".")[2] in _PICKLES:
        raise UsageError(f"{shown} is a pickle, which can run code when it is loaded; write such fields as .json, .npy or .cls text")
