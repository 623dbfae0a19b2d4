"""Files by local path or pyarrow filesystem URI (`s3://`, `gs://`, `file://`), with atomic writes.

On a local disk a file is written under a temporary name, flushed to the disk and renamed; on an object store it is a single put, which
readers see whole or not at all. Temporary errors of an object store (server errors, lost connections) are retried for about a minute, with
increasing pauses. A URI may have the filesystem's options, as in `s3://bucket/key?endpoint_override=localhost:9000`; every function here
keeps them. This module imports neither torch nor Ray.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat as stat_kind
import tempfile
import time
import uuid
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ray_sassl.files.s3 import Bucket, Stamp, bucket_of
from ray_sassl.process.errors import UsageError
from ray_sassl.process.memory import memory_bytes
from ray_sassl.process.secrets import redacted, secret_in_uri

log = logging.getLogger(__name__)

_SPOOL_BYTES = 64 * 2**20
_GAP_BYTES = 2**16
_SPAN_BYTES = 2**25
_NAMES_AT_ONCE = 2**16
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_LASTING = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE", "UNRECOGNIZED_CLIENT", "QuotaExceeded", "INVALID_")
"""Words of errors that a retry would not fix."""

_TRANSPORT = ("aws error", "google::cloud", "azure", "curl", "time", "connect", "network", "http")
"""Words of errors of the connection to an object store, and not of the content."""

_OPTIONS = re.compile(r"[a-z_]+=[^&]*(&[a-z_]+=[^&]*)*", re.IGNORECASE)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Entry:
    """A file or folder of a listing.

    Attributes:
        path: A local path, or a URI with its options, like the listed folder.
        is_file: False for folders.
        size_bytes: 0 for folders.
        mtime_ns: Time of the last change in nanoseconds since 1970, 0 if the filesystem does not tell.
    """

    path: str
    is_file: bool
    size_bytes: int
    mtime_ns: int


class StorageError(UsageError):
    """An operation on an object store failed, even after retries."""


def retried(path: str | os.PathLike[str], work: Callable[[], _Result]) -> _Result:
    """The result of `work`; if the path is on an object store, temporary errors are retried.

    Raises:
        StorageError: the error did not pass, or is a permanent one.
        FileNotFoundError: the path does not exist.
        OSError: the path is local; local errors are not retried.
    """
    if local_path(path) is not None:
        return work()
    for pause_s in (*_PAUSES_S, None):
        try:
            return work()
        except FileNotFoundError:
            raise
        except OSError as error:
            if pause_s is None or isinstance(error, PermissionError) or any(word in str(error) for word in _LASTING):
                raise StorageError(f"cannot reach {os.fspath(path)!r}: {error}") from error
            log.warning("%s does not answer as it should (%s); trying again in %g s", os.fspath(path), redacted(str(error)), pause_s)
            time.sleep(pause_s)
    raise AssertionError


def is_of_transport(path: str | os.PathLike[str], error: OSError) -> bool:
    """Whether the error comes from a disk or network, and not from the content of the file."""
    if local_path(path) is not None:
        return error.errno is not None
    return any(word in str(error).lower() for word in _TRANSPORT)


def object_of(path: str | os.PathLike[str]) -> tuple[Bucket, str] | None:
    """The bucket and the key of an object of an S3 store; None if the path is elsewhere."""
    text = os.fspath(path)
    if not text.startswith("s3://"):
        return None
    filesystem, inner = filesystem_of(text)
    name, _, key = inner.partition("/")
    return bucket_of(name, _split_uri(text)[2], cast(Any, filesystem).region), key


def read_span(path: str, start: int, stop: int, stamp: Stamp | None = None) -> bytes:
    """The file's bytes from `start` to `stop`, as far as there are any; by one request to an S3 store.

    Args:
        stamp: What an object of an S3 store must be.

    Raises:
        ChangedError: the object is another one.
        FileNotFoundError, StorageError: it does not exist, or cannot be reached.
    """
    if stop <= start:
        return b""
    if (place := object_of(path)) is not None:
        bucket, key = place
        return retried(path, lambda: bucket.read(key, (start, stop), stamp))
    filesystem, inner = filesystem_of(path)

    def read() -> bytes:
        with filesystem.open_input_file(inner) as file:
            return file.read_at(stop - start, start)

    return retried(path, read)


@contextmanager
def open_spans(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """A function that reads the file's bytes from one place to another, as far as there are any."""
    if object_of(path) is not None:
        yield lambda start, stop: read_span(path, start, stop)
        return
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_file(inner) as file:
        yield lambda start, stop: file.read_at(stop - start, start)


def read_spans(path: str, spans: Sequence[tuple[int, int]], stamp: Stamp | None = None) -> list[bytes]:
    """The file's bytes in each span (start, stop), as far as there are any. Spans that lie near each other are one request to an object
    store; besides the result, at most a part of 32 MB is in memory.

    Raises:
        As for `read_span`.
    """
    if (local := local_path(path)) is not None:
        with local.open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in spans]
    found = [b""] * len(spans)
    for places in _near(spans):
        first, last = spans[places[0]][0], max(spans[place][1] for place in places)
        data = memoryview(read_span(path, first, last, stamp))
        for place in places:
            start, stop = spans[place]
            found[place] = bytes(data[start - first : stop - first])
    return found


def _near(spans: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """The places of the spans that are not empty, those that are read together in one list."""
    together: list[int] = []
    first = last = 0
    for place in sorted((place for place, (start, stop) in enumerate(spans) if start < stop), key=lambda place: spans[place]):
        start, stop = spans[place]
        if together and (start > last + _GAP_BYTES or stop > first + _SPAN_BYTES):
            yield together
            together = []
        if not together:
            first = last = start
        together.append(place)
        last = max(last, stop)
    if together:
        yield together


def read_object(path: str) -> bytes:
    """The whole file, by one request to an S3 store.

    Raises:
        FileNotFoundError, PermissionError, StorageError: it does not exist, may not be read, or cannot be reached.
    """
    if (place := object_of(path)) is None:
        return read_bytes(path)
    bucket, key = place
    return retried(path, lambda: bucket.read(key))


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Whether the path names a filesystem, as in `s3://bucket/key`."""
    return "://" in os.fspath(path)


def refuse_secret(path: str) -> None:
    """Check that the path is not a URI with a secret, before it is stored or shown.

    Raises:
        UsageError: it is; the message says how to give the secret.
    """
    if objection := secret_in_uri(path):
        raise UsageError(objection)


def filesystem_of(path: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The filesystem of the path, and the path within it (absolute if it is local).

    Raises:
        UsageError: pyarrow does not know the scheme or one of the URI's options, the URI has a secret, or the name is not UTF-8.
    """
    text = os.fspath(path)
    if "\0" in text or not _is_utf8(text):
        raise UsageError(f"the name {text!r} is not UTF-8, or holds a zero byte; rename what it stands for")
    if not is_uri(text):
        return _local(), os.path.abspath(with_home(text))
    refuse_secret(text)
    scheme, address, query = _split_uri(text)
    if scheme == "file":
        return _local(), os.path.abspath(address)
    root, _, rest = address.partition("/")
    filesystem, root_path = _remote(f"{scheme}://{root}{query if len(query) > 1 else ''}")
    return filesystem, f"{root_path}/{rest}".strip("/") if rest else root_path


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def with_home(path: str) -> str:
    """The local path with `~` expanded.

    Raises:
        UsageError: this user has no home folder, as in a container with a user id of its own.
    """
    expanded = os.path.expanduser(path)
    if expanded.partition("/")[0] == "~":
        raise UsageError(f"{path} cannot be found: this user has no home folder; set HOME, or give the whole path")
    return expanded


def local_path(path: str | os.PathLike[str]) -> Path | None:
    """The path on this machine's disk, or None if it is on an object store."""
    filesystem, inner = filesystem_of(path)
    return Path(inner) if isinstance(filesystem, pafs.LocalFileSystem) else None


def join(base: str | os.PathLike[str], *parts: str) -> str:
    """`base/part/...`; a URI keeps its options after the longer path."""
    text = os.fspath(base)
    if not is_uri(text):
        return os.path.join(text, *parts)
    scheme, address, query = _split_uri(text)
    joined = f"{scheme}://{'/'.join([address.rstrip('/'), *(part.strip('/') for part in parts)])}{query}"
    return joined if query or not _split_uri(joined)[2] else f"{joined}?"  # a `?` in a file's name does not begin options


def parent(path: str | os.PathLike[str]) -> str:
    """The folder of the path; a URI keeps its options."""
    text = os.fspath(path)
    if not is_uri(text):
        return os.path.dirname(os.path.abspath(with_home(text)))
    scheme, address, query = _split_uri(text)
    return f"{scheme}://{address.rstrip('/').rpartition('/')[0]}{query}"


def name_of(path: str | os.PathLike[str]) -> str:
    """The last component of the path, without a URI's options."""
    text = os.fspath(path)
    return (_split_uri(text)[1] if is_uri(text) else text).rstrip("/").rpartition("/")[2]


def without_options(path: str | os.PathLike[str]) -> str:
    """The path; a URI without its options."""
    text = os.fspath(path)
    if not is_uri(text):
        return text
    scheme, address, _ = _split_uri(text)
    return f"{scheme}://{address}"


def stat(path: str | os.PathLike[str]) -> Entry | None:
    """The file or folder, or None if it does not exist."""
    filesystem, inner = filesystem_of(path)
    try:
        info = cast(pafs.FileInfo, retried(path, lambda: filesystem.get_file_info(inner)))
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):  # nothing can be there
            return None
        raise
    return None if info.type == pafs.FileType.NotFound else _entry(os.fspath(path), info)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether the file or folder exists."""
    return stat(path) is not None


def list_dir(path: str | os.PathLike[str], *, recursive: bool = False) -> list[Entry]:
    """The entries of the folder, sorted by path; none if there is no such folder."""
    filesystem, inner = filesystem_of(path)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    infos = cast(list[pafs.FileInfo], retried(path, lambda: filesystem.get_file_info(selector)))
    skipped = len(inner.rstrip("/")) + 1
    return sorted((_entry(join(path, info.path[skipped:]), info) for info in infos), key=lambda entry: entry.path)


@dataclass(frozen=True)
class Walk:
    """All files below a folder, as columns: millions of them take little more memory than their names.

    Attributes:
        names: (n,) large strings, the paths below the folder, in the order of the whole paths. Each file is there once, however many links
            lead to it.
        size_bytes, mtime_ns: (n,) int64.
        etag: (n,) large strings, of an S3 store.
        left_out: Other entries, as names below the folder, by the reason why they are left out.
    """

    names: pa.LargeStringArray
    size_bytes: np.ndarray
    mtime_ns: np.ndarray
    left_out: dict[str, list[str]]
    etag: pa.LargeStringArray | None = None


class _Columns:
    """Collects the columns of a `Walk`."""

    def __init__(self) -> None:
        self._parts: list[pa.LargeStringArray] = []
        self._names: list[str] = []
        self._etags: list[str] = []
        self._etag_parts: list[pa.LargeStringArray] = []
        self._sizes, self._times = array("q"), array("q")

    def add(self, name: str, size_bytes: int, mtime_ns: int, etag: str | None = None) -> None:
        self._names.append(name)
        if etag is not None:
            self._etags.append(etag)
        self._sizes.append(size_bytes)
        self._times.append(mtime_ns)
        if len(self._names) == _NAMES_AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        self._parts.append(pa.array(self._names, pa.large_string()))
        self._etag_parts.append(pa.array(self._etags, pa.large_string()))
        self._names, self._etags = [], []

    def walk(self, folder: str, left_out: dict[str, list[str]]) -> Walk:
        """The files in the order of their paths."""
        self._pack()
        names = cast(pa.LargeStringArray, pa.concat_arrays(self._parts))
        sizes, times = (np.frombuffer(column, np.int64) for column in (self._sizes, self._times))
        ending = join(folder, "x").removeprefix(join(without_options(folder), "x"))
        compute: Any = pc
        order = compute.sort_indices(_with_ending(names, ending) if ending else names)
        etags = cast(pa.LargeStringArray, pa.concat_arrays(self._etag_parts))
        return Walk(
            names.take(order),
            sizes[order],
            times[order],
            {reason: sorted(found) for reason, found in left_out.items()},
            etags.take(order) if len(etags) == len(names) > 0 else None,
        )


def _with_ending(names: pa.LargeStringArray, ending: str) -> pa.LargeStringArray:
    compute: Any = pc
    return compute.binary_join_element_wise(names, *(pa.scalar(text, pa.large_string()) for text in (ending, "")))


DANGLING, NOT_UTF8, LINKED_AGAIN, SPECIAL = (
    "links to nothing",
    "names that are not UTF-8",
    "links to what is there already",
    "neither files nor folders",
)


def walk(folder: str | os.PathLike[str]) -> Walk:
    """The files below a folder, also through links, and what was left out; nothing if there is no such folder.

    On a local disk each folder (by its device and inode) is entered once, so loops of links end. A file that is reached through a link
    counts only if it is not reached otherwise.
    """
    filesystem, inner = filesystem_of(folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _walk_local(os.fspath(folder), inner)
    if (place := object_of(folder)) is not None:
        return retried(folder, lambda: _walk_s3(os.fspath(folder), *place))
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=True)
    infos = cast(list[pafs.FileInfo], retried(folder, lambda: filesystem.get_file_info(selector)))
    skipped = len(inner.rstrip("/")) + 1
    columns = _Columns()
    for info in infos:
        if info.type == pafs.FileType.File:
            columns.add(info.path[skipped:], info.size or 0, info.mtime_ns or 0)
    return columns.walk(os.fspath(folder), {})


def _walk_s3(given: str, bucket: Bucket, key: str) -> Walk:
    prefix = f"{key}/" if key else ""
    columns = _Columns()
    for found in bucket.list(prefix):
        if not found.key.endswith("/"):  # a folder that a console has made
            columns.add(found.key[len(prefix) :], found.stamp.size_bytes, found.stamp.mtime_ns, found.stamp.etag)
    return columns.walk(given, {})


def _walk_local(given: str, inner: str) -> Walk:
    columns = _Columns()
    left_out: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    numbers: dict[int, array[int]] = {}  # inodes of the files by device
    through_links: list[tuple[str, os.stat_result]] = []
    # Real folders come first, so that it is known which targets of links are below the folder itself.
    folders, links = deque([""]), deque[str]()
    while folders or links:
        is_linked = not folders
        name = links.popleft() if is_linked else folders.popleft()
        for below, entry, stat in _entries(inner, name, seen, left_out):
            if entry.is_dir():
                (links if is_linked or entry.is_symlink() else folders).append(below)
            elif not entry.is_file():
                left_out.setdefault(SPECIAL, []).append(below)
            elif is_linked or entry.is_symlink():
                through_links.append((below, stat))
            else:
                numbers.setdefault(stat.st_dev, array("Q")).append(stat.st_ino)
                columns.add(below, stat.st_size, stat.st_mtime_ns)
    there = {(device, inode) for device, inodes in numbers.items() for inode in inodes} if through_links else set()
    for below, stat in through_links:
        if (stat.st_dev, stat.st_ino) in there:
            left_out.setdefault(LINKED_AGAIN, []).append(below)
        else:
            there.add((stat.st_dev, stat.st_ino))
            columns.add(below, stat.st_size, stat.st_mtime_ns)
    return columns.walk(given, left_out)


def _entries(
    inner: str, name: str, seen: set[tuple[int, int]], left_out: dict[str, list[str]]
) -> Iterator[tuple[str, os.DirEntry[str], os.stat_result]]:
    """The entries of the folder `name` below `inner`, unless it was entered before: path below `inner`, entry, and stat of a link's
    target."""
    place = os.path.join(inner, name) if name else inner
    try:
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            left_out.setdefault(LINKED_AGAIN, []).append(name)
            return
        seen.add((here.st_dev, here.st_ino))
        found = os.scandir(place)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(f"{place} is neither a file nor a folder") from error
    with found:
        for entry in found:
            below = f"{name}/{entry.name}" if name else entry.name
            try:
                below.encode()
                stat = entry.stat()
            except UnicodeEncodeError:
                left_out.setdefault(NOT_UTF8, []).append(os.fsencode(below).decode(errors="backslashreplace"))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                left_out.setdefault(DANGLING, []).append(below)
            else:
                yield below, entry, stat


def check_can_write(path: str | os.PathLike[str], *, is_folder: bool = False) -> None:
    """Check, before long work, whether a file, or files in a folder, can be written there; on an object store only writing itself shows it.

    Raises:
        UsageError: there is a folder or a device in place of the file, a file in place of the folder, or no permission to write.
    """
    local = local_path(path)
    if local is None:
        return
    if not is_folder and (local.is_dir() or os.fspath(path).endswith("/")):
        raise UsageError(f"{os.fspath(path)} is a folder; give the name of a file to write")
    _refuse_special(local)
    nearest = next(folder for folder in ((local, *local.parents) if is_folder else local.parents) if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"{os.fspath(path)} cannot be written: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{os.fspath(path)} cannot be written: no permission to write to {nearest}")


def makedirs(path: str | os.PathLike[str]) -> None:
    """Make the folder and its parents; does nothing on an object store, which has no folders."""
    if (local := local_path(path)) is not None:
        local.mkdir(parents=True, exist_ok=True)


def read_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """The file's content.

    Args:
        max_bytes: A larger file is refused before it is read; by default, one that is larger than the memory.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is larger than `max_bytes`, or is not a file.
    """
    filesystem, inner = filesystem_of(path)
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    most = memory_bytes() if max_bytes is None else max_bytes
    size_bytes = _size_of_file(inner) if is_local else 0
    if not is_local and max_bytes is not None and (entry := stat(path)) is not None:
        size_bytes = entry.size_bytes
    if size_bytes > most:
        raise UsageError(f"{os.fspath(path)} has {size_bytes:,} bytes; at most {most:,} are read")

    def read() -> bytes:
        with filesystem.open_input_stream(inner, compression=None) as stream:
            return stream.read()

    return retried(path, read)


def _size_of_file(path: str) -> int:
    """The size of a file on a local disk.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not a file, or a link that leads to itself.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UsageError(f"{path} is a link that leads to itself") from error
    if not stat_kind.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is a folder, a pipe or a device, not a file")
    return found.st_size


def read_text(path: str | os.PathLike[str], max_bytes: int | None = None) -> str:
    """The file's content as UTF-8 text.

    Args:
        max_bytes: A larger file is refused before it is read.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is larger than `max_bytes`, or not UTF-8.
    """
    content = read_bytes(path, max_bytes)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{os.fspath(path)} is not UTF-8 text: byte {error.start:,} is {content[error.start]:#04x}") from error


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview | pa.Buffer) -> None:
    """Write the content atomically; parent folders are made."""
    with open_atomic(path) as file:
        file.write(cast(bytes, data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write the text as UTF-8 atomically; parent folders are made."""
    write_bytes(path, text.encode())


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append UTF-8 text to a local file and flush it to the disk; a last line that a crash has truncated is ended first."""
    local = local_path(path)
    assert local is not None, "an object store cannot append"
    local.parent.mkdir(parents=True, exist_ok=True)
    is_new = not local.exists()
    with local.open("a+b") as file:
        is_torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            is_torn = file.read(1) != b"\n"
        file.write(b"\n" * is_torn + text.encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_dir(local.parent)


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file for writing, which appears at the path when the block ends; after an exception nothing appears.

    Raises:
        UsageError: there is a device, a pipe or a socket, which renaming would replace for the whole machine.
    """
    local = local_path(path)
    if local is None:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            yield cast(IO[bytes], spool)
            filesystem, inner = filesystem_of(path)

            def put() -> None:
                spool.seek(0)
                with filesystem.open_output_stream(inner, compression=None) as stream:
                    shutil.copyfileobj(spool, stream, 8 * 2**20)

            retried(path, put)
        return
    _refuse_special(local)
    local.parent.mkdir(parents=True, exist_ok=True)
    aside = local.with_name(f".{local.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, local)
        sync_dir(local.parent)
    finally:
        aside.unlink(missing_ok=True)


def _refuse_special(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"{path} is a device, a pipe or a socket; give the name of a file to write")


def sync_dir(folder: Path) -> None:
    """Make renames within a local folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file or folder within one filesystem; atomic on a local disk, copy and delete on an object store."""
    filesystem, inner = filesystem_of(source)
    _, target_inner = filesystem_of(target)
    if isinstance(filesystem, pafs.LocalFileSystem):
        os.replace(inner, target_inner)
        sync_dir(Path(target_inner).parent)
        return
    retried(source, lambda: _move_remote(filesystem, inner, target_inner))


def _move_remote(filesystem: pafs.FileSystem, inner: str, target_inner: str) -> None:
    if filesystem.get_file_info(inner).type == pafs.FileType.File:
        filesystem.move(inner, target_inner)
        return
    for info in filesystem.get_file_info(pafs.FileSelector(inner, recursive=True)):
        if info.type == pafs.FileType.File:
            filesystem.copy_file(info.path, target_inner + info.path[len(inner) :])
    filesystem.delete_dir(inner)


def remove(path: str | os.PathLike[str]) -> None:
    """Delete the file or the folder with its content, if it exists."""
    filesystem, inner = filesystem_of(path)

    def delete() -> None:
        kind = filesystem.get_file_info(inner).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif kind != pafs.FileType.NotFound:
            filesystem.delete_file(inner)

    retried(path, delete)


@lru_cache(maxsize=1)
def _local() -> pafs.LocalFileSystem:
    return pafs.LocalFileSystem()


@lru_cache(maxsize=64)
def _remote(root: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(
            f"cannot open {root!r}: {error}. Known are local paths and file://, s3://, gs://, abfs:// and hdfs:// URIs."
        ) from error
    except OSError as error:  # S3 is asked for the bucket's region where the URI does not say it
        raise StorageError(f"cannot reach {root!r}: {error}") from error


def _split_uri(uri: str) -> tuple[str, str, str]:
    """Scheme, address and options: the part after the last `?` if it has the form of options, since names of files may contain a `?`
    too."""
    scheme, _, rest = uri.partition("://")
    address, mark, query = rest.rpartition("?")
    if mark and (not query or _OPTIONS.fullmatch(query)):
        return scheme, address, mark + query
    return scheme, rest, ""


def _entry(path: str, info: pafs.FileInfo) -> Entry:
    return Entry(path, info.type == pafs.FileType.File, info.size or 0, info.mtime_ns or 0)
