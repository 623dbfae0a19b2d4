"""The processes of a Ray that a test or a benchmark has started, by what they do; for killing them as a machine's end would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

TRAIN_WORKER = "RayTrainWorker"
STYLIZER = "StyleActor"
DECODE_TASK = "crops"


def descendants(*roots: int) -> dict[int, str]:
    """The roots and all that came from them, with the words that `ps` shows of each."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found: dict[int, str] = {}
    todo = list(roots)
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        todo += children.get(pid, [])
    return found


def doing(what: str, *roots: int) -> list[int]:
    """The Ray workers below the roots (this process, where none is given) that do `what`, by their number."""
    below = descendants(*(roots or (os.getpid(),)))
    return sorted(pid for pid, words in below.items() if words.startswith("ray::") and what in words)


def kill_one(what: str, *roots: int, patience_s: float = 30.0) -> int:
    """SIGKILL to the first process that does `what`, once there is one; its number."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        for pid in doing(what, *roots):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.005)
    raise AssertionError(f"no process does {what!r}: {descendants(*(roots or (os.getpid(),)))}")


def kill_all(*roots: int) -> None:
    """SIGKILL to the roots and all below them at once, as where a machine's power goes."""
    for pid in descendants(*roots):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_driver(process: subprocess.Popen, patience_s: float = 30.0) -> None:
    """SIGKILL to a driver, and wait until the Ray that it had started has ended, but for Ray's agents, which take a minute."""
    below = [pid for pid, words in descendants(process.pid).items() if not words.endswith("Agent")]
    process.kill()
    process.wait()
    until = time.monotonic() + patience_s
    while left := [pid for pid in below if _is_running(pid)]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    return False
