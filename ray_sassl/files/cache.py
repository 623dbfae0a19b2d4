"""The folder of what this package can make or fetch again, and how several processes share it."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ray_sassl.plugins import UsageError

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 60


class DownloadError(UsageError):
    """No address gave the file that was wanted."""


def cache_dir() -> Path:
    """`RAY_SASSL_CACHE`, or `ray-sassl` in the user's cache folder."""
    if given := os.environ.get("RAY_SASSL_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ray-sassl"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process is in such a block for the same path; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def download(
    addresses: Sequence[str], target: Path, num_bytes: int, sha256: str, advance: Callable[[int], object] = lambda done: None
) -> None:
    """The file, under its name only after its size and its sha256 have been checked; a call that was cut off goes on where it was.

    Args:
        addresses: Tried one after the other.
        target: Where the file goes; what has arrived of it lies beside it as `NAME.part`.
        num_bytes: Size of the whole file.
        sha256: Of the whole file, in hexadecimal.
        advance: Is told how many bytes are there.

    Raises:
        DownloadError: no address gave the file; the message says what each one gave.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for address in addresses:
        try:
            _fetch(address, part, num_bytes, advance)
        except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
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
    """How the content differs from what was published, or None where it does not."""
    if len(content) != num_bytes:
        return f"it has {len(content):,} bytes and should have {num_bytes:,}"
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        return f"its sha256 is {found} and should be {sha256}"
    return None


def _fetch(address: str, part: Path, num_bytes: int, advance: Callable[[int], object]) -> None:
    """Append what is missing to `part`; starts anew where the server cannot send a part or has another file."""
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
