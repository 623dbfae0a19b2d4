"""One command at a time in a folder: a lock file that names its holder, with a heartbeat that shows that the holder is alive.

The file is `.lock`. On a local or shared disk it is created by a call that fails if it exists. pyarrow has no conditional writes to object
stores, so there the file is written and read back a moment later: of two commands that start at once, the one whose file remains has the
folder. A lock is taken over if its process has ended on this machine, or if its heartbeat has not changed for `STALE_S`; clocks do not
matter.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ray_sassl.files import storage
from ray_sassl.files.json_files import parse_json
from ray_sassl.process.ending import lastly
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

LOCK = ".lock"
BEAT_S = 10.0
STALE_S = 45.0
_SETTLE_S = 2.0
"""Time before the lock is read back from an object store, so that a slightly slower writer has written its own."""


class FolderInUseError(UsageError):
    """Another command is at work in the folder."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        token: Random and unique for each lock.
        host: Name of the machine.
        place: The scope of process numbers: this boot of this machine, and the container. Empty if the system does not tell.
        pid: Number of the process.
        started: Start time of the process, in ticks, since its number may be reused.
        command: Name of the command, such as `pretrain`.
        beat: Counts up while the holder is alive.
    """

    token: str
    host: str
    place: str
    pid: int
    started: str
    command: str
    beat: int = 0


@contextmanager
def hold_folder(folder: str, command: str) -> Iterator[None]:
    """Hold the folder exclusively within the block.

    Args:
        folder: Local path or URI; it is created if it does not exist.
        command: Name of the command, for the message to others.

    Raises:
        FolderInUseError: a command that is still alive holds it.
    """
    path = storage.join(folder, LOCK)
    me = Holder(uuid.uuid4().hex, socket.gethostname(), _place(), os.getpid(), _started(os.getpid()) or "", command)
    is_new = not storage.exists(folder)
    storage.makedirs(folder)
    _acquire(path, me, folder)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, me, ended), name="lock", daemon=True)
    beating.start()

    def release() -> None:
        ended.set()
        beating.join()
        if (there := _read(path)) is not None and there.token == me.token:
            storage.remove(path)
        if is_new and (local := storage.local_path(folder)) is not None:
            with suppress(OSError):  # something was written there
                local.rmdir()

    with lastly(f"remove the lock {path}", release):
        yield


def _acquire(path: str, me: Holder, folder: str) -> None:
    while not _put_new(path, me):
        there = _read(path)
        if there is None and not storage.exists(path):
            continue
        if there is None or not _has_ended(there, path):
            who = (
                f"{there.command!r} is at work there, on {there.host} as process {there.pid}"
                if there
                else "another command is at work there"
            )
            raise FolderInUseError(
                f"{folder} is in use: {who}. Wait until it has ended, or give another folder. If nothing is, delete {path}."
            )
        log.warning("taking over %s from %r on %s (process %d), which has ended", folder, there.command, there.host, there.pid)
        _take_away(path, there)


def _put_new(path: str, me: Holder) -> bool:
    """Write the lock if there is none; returns whether this call wrote it."""
    text = json.dumps(asdict(me))
    local = storage.local_path(path)
    if local is None:
        if storage.exists(path):
            return False
        storage.write_text(path, text)
        time.sleep(_SETTLE_S)
        there = _read(path)
        return there is not None and there.token == me.token
    aside = local.with_name(f"{LOCK}.{me.token}")
    aside.write_text(text)
    try:
        os.link(aside, local)  # atomic, and fails if it exists
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links
        try:
            with local.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _take_away(path: str, there: Holder) -> None:
    """Remove an abandoned lock, unless another command has taken the folder over meanwhile."""
    with _alone_in(storage.parent(path)):
        if (now := _read(path)) is not None and now.token == there.token:
            storage.remove(path)


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Exclude other processes that take over locks within the block, as far as the disk supports it."""
    local = storage.local_path(folder)
    if local is None:
        yield
        return
    handle = os.open(local, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network disk without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _has_ended(there: Holder, path: str) -> bool:
    """Whether the holder has ended: by its process in the same scope of process numbers, else by a heartbeat that stops for `STALE_S`."""
    if there.place and there.place == _place():
        return _started(there.pid) != there.started
    until = time.monotonic() + STALE_S
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_S / 10))
        now = _read(path)
        if now is None or now.token != there.token or now.beat != there.beat:
            return False
    return True


def _beat(path: str, me: Holder, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(BEAT_S):
        number += 1
        there = _read(path)
        if there is None or there.token != me.token:
            log.error("the lock %s is gone or another's: someone else may be writing there", path)
            return
        try:
            storage.write_text(path, json.dumps(asdict(me) | {"beat": number}))
        except OSError as error:
            log.warning("cannot write the heartbeat %s: %s", path, error)


def _read(path: str) -> Holder | None:
    try:
        tree = parse_json(storage.read_text(path, 10_000), path)
        return Holder(**{name: type_(tree[name]) for name, type_ in _FIELDS.items()})
    except (FileNotFoundError, UsageError, LookupError, TypeError, ValueError):
        return None


_FIELDS = {"token": str, "host": str, "place": str, "pid": int, "started": str, "command": str, "beat": int}


def _place() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process of this machine, in ticks since the boot; None if there is no such process, or only its exit code is left."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return None
