"""What the benchmarks share: CPU time and memory of a process tree, and results with their goals."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).with_name("results")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Goal:
    """A claim and what was measured.

    Attributes:
        what: In words.
        measured: The figure.
        bound: `at least` or `at most`.
        goal: The figure aimed at.
    """

    what: str
    measured: float
    bound: Literal["at least", "at most"]
    goal: float

    @property
    def is_met(self) -> bool:
        return self.measured >= self.goal if self.bound == "at least" else self.measured <= self.goal


def write_results(name: str, goals: list[Goal], details: dict[str, Any], out: Path | None = None) -> Path:
    """Write `results/NAME.json`: the machine, the goals and the details; returns the path."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "goals": [asdict(goal) for goal in goals], **details}, indent=2) + "\n")
    return path


def in_own_process(name: str, case: Any) -> dict[str, float]:
    """The figures that `python -m benchmarks.NAME --case JSON` prints in its last line for a case, which is a dataclass."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--case", json.dumps(asdict(case))]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    versions = {name: _version(name) for name in ("ray", "torch", "numpy", "pillow", "opencv-python-headless")}
    return {"cpu": model, "cpus": os.cpu_count(), "platform": platform.platform(), "load_1min": round(os.getloadavg()[0], 2), **versions}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # not every benchmark needs all of them
        return None


def tree(root: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int], *, ended: bool = False) -> dict[int, float]:
    """User and system time of each process that is still there; with `ended` also of the children that it has waited for."""
    until = 15 if ended else 13
    return {pid: sum(map(int, fields[11:until])) / _TICKS for pid in pids if (fields := _stat(pid))}


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU time that was spent between two looks; of a process that is new, all of it."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def memory_bytes(pids: list[int]) -> int:
    """Memory of the processes together; what several of them share counts once (the sum of proportional set sizes)."""
    total = 0
    for pid in pids:
        line = next((line for line in _lines(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:")), "Pss: 0 kB")
        total += int(line.split()[1]) * 1024
    return total


def command(pid: int) -> str:
    """The process's title; empty where it has ended."""
    return " ".join(_lines(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: [1] is the parent, [11] and [12] user and system ticks,
    [13] and [14] those of children that were waited for."""
    lines = _lines(f"/proc/{pid}/stat")
    return lines[0].rpartition(")")[2].split() if lines else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # the process has ended meanwhile
        return []
