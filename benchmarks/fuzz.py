"""Damaged and hostile inputs for every reader, for as long as wanted: what comes of them is a result or an error of ours.

    python -m benchmarks.fuzz [--minutes 10 | --inputs N] [--seed 0] [--target NAME]... [--keep FOLDER] [--out FILE] [--replay FOLDER]

Each input is a valid one with a few changes (`benchmarks/fuzz_inputs.py`), read in a process of its own, which a warm one forks: at most
`LIMIT_S` seconds and `LIMIT_BYTES` of memory. Outcomes are counted by kind. Inputs whose outcome is neither a result nor an error of ours,
or that take too much, are kept, at most `KEPT` of a kind; `--replay` reads one again, with its traceback.
Goal: none of these.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fuzz_inputs import Files, changed
from benchmarks.fuzz_targets import OWN_ERRORS, TARGETS, Target, write_case
from benchmarks.measuring import Goal, write_results
from ray_sassl.experiments import experiments, load_experiment

LIMIT_S = 30
"""Of a processor, so that other work on the machine makes no finding."""
_PATIENCE_S = 10.0 * LIMIT_S
"""By the clock, for what waits for ever."""
LIMIT_BYTES = 400_000_000
"""Beside what the warm process has anyway."""
_ADDRESS_SPACE = 4 * 10**9
"""Of a child, beyond its parent's: far above the limit, for what is mapped and not used."""
KEPT = 3


@dataclass
class Outcome:
    """What came of one input.

    Attributes:
        kind: A word or two; of an error that is not ours, its type and the last of our lines.
        is_well: Whether it is a result or an error of ours, in time and in memory.
        seconds: CPU seconds.
        num_bytes: The most memory, beside what the parent had.
        trace: Where an error that is not ours was raised.
    """

    kind: str
    is_well: bool
    seconds: float = 0.0
    num_bytes: int = 0
    trace: str = ""


@dataclass
class Tally:
    """The outcomes of one target."""

    kinds: Counter[str] = field(default_factory=Counter)
    num_bad: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += 1
        self.num_bad += not outcome.is_well
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.most_bytes = max(self.most_bytes, outcome.num_bytes)


def read_here(target: Target, folder: Path) -> Outcome:
    """Read a case in this process."""
    try:
        return Outcome(target.read(folder), is_well=True)
    except OWN_ERRORS as error:
        return Outcome(type(error).__name__, is_well=True)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the finding
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/ray_sassl/" in frame.filename]
        place = f"{frames[-1].filename.rpartition('/ray_sassl/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
        return Outcome(f"{type(error).__name__} at {place}", is_well=False, trace="".join(traceback.format_exception(error)))


def read_apart(target: Target, folder: Path) -> Outcome:
    """Read a case in a forked process, within the limits."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _be_a_child()
        os.write(theirs, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss.to_bytes(8, "little"))
        outcome = read_here(target, folder)
        outcome.trace = outcome.trace[-20_000:]
        os.write(theirs, json.dumps(asdict(outcome)).encode("utf-8", "replace"))
        os._exit(0)
    os.close(theirs)
    said = _until_closed(ours)
    if said is None:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if said is None or (os.WIFSIGNALED(status) and usage.ru_utime + usage.ru_stime > 0.9 * LIMIT_S):
        outcome = Outcome(f"more than {LIMIT_S} s of a processor, or {_PATIENCE_S:g} s", is_well=False)
    elif len(said) <= 8:
        outcome = Outcome(
            f"process ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "nothing said", False
        )
    else:
        outcome = Outcome(**json.loads(said[8:]))
    outcome.seconds = usage.ru_utime + usage.ru_stime
    if said is not None and len(said) >= 8:
        outcome.num_bytes = 1024 * max(0, usage.ru_maxrss - int.from_bytes(said[:8], "little"))
    if outcome.is_well and outcome.num_bytes > LIMIT_BYTES:
        outcome.kind, outcome.is_well = f"{outcome.kind}, with more than {LIMIT_BYTES / 1e6:g} MB", False
    return outcome


def _be_a_child() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    logging.disable()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE, size + _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))


def _until_closed(pipe: int) -> bytes | None:
    """All that is written to the pipe, or None where it is not closed in time."""
    until, parts = time.monotonic() + _PATIENCE_S, []
    try:
        while (left := until - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            part = os.read(pipe, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
        return None
    finally:
        os.close(pipe)


def seeds_of(target: Target) -> list[Files]:
    """The target's valid cases, made in a process of their own: this one must have no threads, which a fork would lose."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            try:
                for number, files in enumerate(target.seeds()):
                    write_case(files, Path(folder) / str(number))
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"the seeds of {target.name!r} cannot be made")
        cases = sorted(Path(folder).iterdir(), key=lambda path: int(path.name))
        return [{str(path.relative_to(case)): path.read_bytes() for path in case.rglob("*") if path.is_file()} for case in cases]


def fuzz(targets: list[Target], minutes: float, inputs: int | None, seed: int, keep: Path, console: Console) -> dict[str, Tally]:
    """Read changed inputs until the time is up, the targets in turn by the time that they have had; or as many as said, in turn."""
    seeds = {target.name: seeds_of(target) for target in targets}
    for target in targets:
        _refuse_bad_seeds(target, seeds[target.name])
    tallies = {target.name: Tally() for target in targets}
    had_s = dict.fromkeys(tallies, 0.0)
    until = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < until if inputs is None else number < inputs:
        target = min(targets, key=lambda one: had_s[one.name]) if inputs is None else targets[number % len(targets)]
        began = time.monotonic()
        draw = random.Random(f"{seed} {number} {target.name}")
        files = draw.choice(seeds[target.name])
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            files = changed(files, draw)
        outcome = _read_files(target, files)
        tallies[target.name].add(outcome)
        if not outcome.is_well and tallies[target.name].kinds[outcome.kind] <= KEPT:
            where = keep / target.name.replace(" ", "-") / f"{seed}-{number}"
            write_case(files | {"OUTCOME.txt": f"{outcome.kind}\n\n{outcome.trace}".encode()}, where)
            console.print(f"{target.name}: {outcome.kind}; kept in {where}", soft_wrap=True, markup=False, highlight=False)
        had_s[target.name] += time.monotonic() - began
        number += 1
    return tallies


def _read_files(target: Target, files: Files) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        write_case(files, folder)
        return read_apart(target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_bad_seeds(target: Target, seeds: list[Files]) -> None:
    for files in seeds:
        outcome = _read_files(target, files)
        if not outcome.is_well or outcome.kind.endswith("Error"):
            sys.exit(f"a seed of {target.name!r} is not read: {outcome.kind}\n{outcome.trace}")


def _warm(targets: list[Target]) -> None:
    """Import what the readers need, once, and start no threads."""
    torch.set_num_threads(1)
    for module in sorted({module for target in targets for module in target.needs}):
        importlib.import_module(module)
    if any(target.needs for target in targets):  # their configs name plug-ins
        for name in experiments():
            load_experiment(name)


def _show(tallies: dict[str, Tally], console: Console) -> None:
    table = Table("input", "number", "outcomes", "bad", "slowest (CPU s)", "most memory (MB)", title="Fuzzing")
    for name, tally in tallies.items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.kinds.most_common(8))
        total = sum(tally.kinds.values())
        table.add_row(name, f"{total:,}", kinds, str(tally.num_bad), f"{tally.slowest_s:.2f}", f"{tally.most_bytes / 1e6:.0f}")
    console.print(table, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--inputs", type=int, help="so many inputs instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--replay", type=Path, help="a kept case, below the folder of its target")
    given = parser.parse_args()
    console = Console()
    if given.replay:
        target = next(one for one in TARGETS if one.name.replace(" ", "-") == given.replay.absolute().parent.name)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(given.replay, folder, dirs_exist_ok=True)
            outcome = read_here(target, Path(folder))
        console.print(outcome.kind, outcome.trace, markup=False, highlight=False, soft_wrap=True)
        return
    targets = [target for target in TARGETS if not given.target or target.name in given.target]
    _warm(targets)
    tallies = fuzz(targets, given.minutes, given.inputs, given.seed, given.keep, console)
    _show(tallies, console)
    num_bad = sum(tally.num_bad for tally in tallies.values())
    goal = Goal("inputs that end in neither a result nor an error of ours", num_bad, "at most", 0)
    rows = [{"input": name, **vars(tally)} for name, tally in tallies.items()]
    path = write_results("fuzz", [goal], {"minutes": given.minutes, "seed": given.seed, "inputs": rows}, given.out)
    console.print(f"written to {path}")
    sys.exit(1 if num_bad else 0)


if __name__ == "__main__":
    main()
