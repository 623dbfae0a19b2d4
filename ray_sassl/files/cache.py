"""The cache folder, for files that can be made or downloaded again, and its locks between processes."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from ray_sassl.files.own import mark_folder
from ray_sassl.files.storage import with_home
from ray_sassl.process.errors import UsageError

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 60


class DownloadError(UsageError):
    """The file could not be downloaded from any address."""


def cache_dir() -> Path:
    """`RAY_SASSL_CACHE`, or `ray-sassl` in the user's cache folder.

    Raises:
        UsageError: none of them is set, and the user has no home folder.
    """
    if given := os.environ.get("RAY_SASSL_CACHE"):
        return Path(with_home(given)).absolute()
    try:
        return Path(with_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute() / "ray-sassl"
    except UsageError as error:
        raise UsageError(f"no folder for the cache: {error}, or set RAY_SASSL_CACHE to a folder") from error


def mark_cache() -> None:
    """Mark the cache as ours, so that it is left out where it lies among somebody's images; one that may only be read needs no mark."""
    with suppress(OSError, UsageError):
        mark_folder(str(cache_dir()), known=None)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock for the path within the block; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def download(
    addresses: Sequence[str], target: Path, num_bytes: int, sha256: str, advance: Callable[[int], object] = lambda done: None
) -> None:
    """Download the file; it gets its name only after its size and sha256 have been checked. A repeated call continues an interrupted one.

    Args:
        addresses: Addresses to try in order.
        target: Path of the file; an incomplete file is next to it as `NAME.part`.
        num_bytes: Size of the whole file.
        sha256: sha256 of the whole file, in hexadecimal.
        advance: Called with the number of bytes so far.

    Raises:
        DownloadError: no address has the file; the message says what is wrong with each.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for address in addresses:
        try:
            _fetch(address, part, num_bytes, advance)
        except (OSError, ValueError, HTTPException) as error:  # URLError and time-outs are OSErrors
            reasons.append(f"  {address}: {error}")
            continue
        if problem := mismatch(part.read_bytes(), num_bytes, sha256):
            part.unlink()
            reasons.append(f"  {address}: {problem}")
            continue
        part.replace(target)
        return
    raise DownloadError(f"{target.name} could not be fetched:\n" + "\n".join(reasons))


def mismatch(content: bytes, num_bytes: int, sha256: str) -> str | None:
    """How the content differs from the published file, or None if it does not."""
    if len(content) != num_bytes:
        return f"it has {len(content):,} bytes and should have {num_bytes:,}"
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        return f"its sha256 is {found} and should be {sha256}"
    return None


def _fetch(address: str, part: Path, num_bytes: int, advance: Callable[[int], object]) -> None:
    """Append the missing bytes to `part`; start again if the server cannot send a part or has another file."""
    there = part.stat().st_size if part.exists() else 0
    if there >= num_bytes:
        part.unlink()
        there = 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumes = there > 0 and response.status == 206
        with part.open("ab" if resumes else "wb") as file:
            there = there if resumes else 0
            advance(there)
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                there += len(chunk)
                advance(there)
                if there > num_bytes:
                    raise ValueError(f"it is larger than the {num_bytes:,} bytes that were published")
    if there < num_bytes:
        raise ValueError(f"it ended after {there:,} of {num_bytes:,} bytes")
