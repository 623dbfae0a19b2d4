"""A training run while its processes and machines are killed: it finishes, no sample is lost or repeated, and what the faults cost.

    python -m benchmarks.chaos [--minutes 30] [--seed 0] [--calm-minutes 3] [--out FILE]

A cluster of a head and three nodes runs on this machine; an elastic run of one to two workers trains a small network on the embedded data
set, with a pool of stylizers. First it runs undisturbed for its rate. Then, every 20 to 60 s by a seeded draw, one of these happens:

* a training worker, a stylizer or a whole node is killed (SIGKILL); a node is replaced 10 s later;
* the command gets SIGTERM or SIGHUP: it has to write a checkpoint and exit with 143 or 129, and is given again;
* the disk is full for the training workers, which may write no file above 64 KiB: the command has to exit with 2, and is given again;
* the command is given a second time while it runs: the second one has to be refused.

When the time is up the run is left to finish.

*Goodput* is the time that the steps which were reached when the time was up would have taken undisturbed, over that time, start and
restarts included.
*Pause* is the longest time without a new logged step between a kill and the next one.
Goal: every sample of every epoch exactly once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from benchmarks.nodes import Nodes, running_nodes
from benchmarks.processes import STYLIZER, TRAIN_WORKER, doing, kill_one
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.train.checkpoint import latest_checkpoint

EVERY_S = (20.0, 60.0)
NODE_BACK_S = 10.0
SIGNALS = {"SIGTERM": 143, "SIGHUP": 129}
"""The command's exit code after each."""
KINDS = ("worker", "stylizer", "node", *SIGNALS, "full disk", "second start")
_ROOM_BYTES = 1 << 16
_PATIENCE_S = 300.0
BATCH = 32
SHARE = 0.8
"""Of the steps that an undisturbed run makes in the time: the run should be at its end when the time is up, not long before."""
_LOOK_EVERY_S = 0.2


@dataclass
class Kill:
    """What was killed or happened else, and how long no step was logged.

    Attributes:
        at_s: Since the run's command was given first.
        kind: Of `KINDS`.
        pause_s: The longest time without a new step before the next kill.
    """

    at_s: float
    kind: str
    pause_s: float = 0.0


@dataclass
class Watched:
    """A run, seen from outside: when which step was logged, and when the command began first."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    command: list[str]
    environment: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    steps: list[tuple[float, int]] = field(default_factory=list)

    def look(self) -> int:
        """The last logged step."""
        metrics = self.run_dir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        step = next((json.loads(line)["step"] for line in reversed(lines) if line.endswith("}")), 0)
        if not self.steps or self.steps[-1][1] != step:
            self.steps.append((time.monotonic() - self.began, step))
        return step

    def give_again(self) -> None:
        """The same command, once it has ended."""
        self.process = _given(self.command, self.environment, self.run_dir.with_suffix(".log"))

    def longest_pause(self, from_s: float, to_s: float) -> float:
        """The longest time without a new step within the span."""
        times = [from_s, *(at for at, _ in self.steps if from_s < at < to_s), to_s]
        return max(after - before for before, after in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--calm-minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the commands would ignore it, as they should
    with tempfile.TemporaryDirectory() as folder, running_nodes(3) as nodes:
        calm = undisturbed_rate(nodes, Path(folder) / "calm", args.calm_minutes)
        steps = round(calm * args.minutes * 60 * SHARE)
        run, kills, seen = under_fire(nodes, Path(folder) / "chaos", steps, args.minutes * 60, args.seed)
    wall_s = run.steps[-1][0]
    under_fire_s = min(wall_s, args.minutes * 60)
    reached = next(step for at, step in reversed(run.steps) if at <= under_fire_s)
    goodput = reached / calm / under_fire_s
    title = f"{reached:,} of {steps:,} steps in {under_fire_s / 60:.1f} min under fire: goodput {goodput:.0%}"
    table = Table("fault", "times", "median pause, s", "longest, s", title=title)
    for kind in KINDS:
        if pauses := [kill.pause_s for kill in kills if kill.kind == kind]:
            table.add_row(kind, str(len(pauses)), f"{statistics.median(pauses):.0f}", f"{max(pauses):.0f}")
    Console().print(table)
    goals = [Goal("samples that were not seen exactly once an epoch", float(seen["wrong"]), "at most", 0.0)]
    details = {
        "minutes": args.minutes,
        "seed": args.seed,
        "steps": steps,
        "calm_steps_per_s": calm,
        "wall_s": wall_s,
        "under_fire_s": under_fire_s,
        "steps_under_fire": reached,
        "goodput": goodput,
        "kills": [asdict(kill) for kill in kills],
        "seen": seen,
    }
    print(f"written to {write_results('chaos', goals, details, args.out)}")


def chaos_config(steps: int) -> ExperimentConfig:
    """A small elastic run of so many steps on the embedded data set."""
    overrides = [
        "train.global_batch=32", "train.log_every=5", "train.checkpoint_every=50", "train.keep_checkpoints=3", "evaluate.train=null",
        "evaluate.test=null",
        "data={path: synthetic, shuffle_window: 256, block_rows: 32}", "views.size_px=16", "stylize=color_statistics", "stream.layout=pool",
        "stream.pool={min: 1, max: 2, num_cpus: 0.5}", "stream.num_cpus=0.5", "scaling.num_workers=2", "scaling.min_workers=1",
        "scaling.cpus_per_worker=1", "scaling.threads_per_worker=1", "scaling.resize_every_s=30", "scaling.max_failures=-1",
        "tracking.tensorboard=false",
    ]  # fmt: skip
    config = apply_overrides(load_experiment("demo"), overrides)
    from ray_sassl.data.reading import build_index

    epochs = steps * BATCH / build_index(config.data).num_rows
    return apply_overrides(config, [f"train.epochs={epochs!r}"])


def begin(nodes: Nodes, run_dir: Path, steps: int) -> Watched:
    """The command, on the cluster."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_suffix(".yaml")
    path.write_text(to_yaml(chaos_config(steps)))
    command = [sys.executable, "-m", "ray_sassl.cli", "pretrain", str(path), "--run-dir", str(run_dir), "--address", nodes.address]
    command.append("--resume-if-begun")
    return Watched(_given(command, nodes.environment, run_dir.with_suffix(".log")), run_dir, command, nodes.environment)


def _given(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def undisturbed_rate(nodes: Nodes, run_dir: Path, minutes: float) -> float:
    """Steps a second from the first step on."""
    run = begin(nodes, run_dir, 20_000)
    while run.look() < 5:
        _refuse_end(run)
        time.sleep(_LOOK_EVERY_S)
    first_s, first = run.steps[-1]
    while time.monotonic() - run.began < first_s + minutes * 60:
        run.look()
        time.sleep(_LOOK_EVERY_S)
    last_s, last = run.steps[-1]
    run.process.send_signal(signal.SIGINT)
    run.process.wait(timeout=300)
    return (last - first) / (last_s - first_s)


def under_fire(nodes: Nodes, run_dir: Path, steps: int, seconds: float, seed: int) -> tuple[Watched, list[Kill], dict[str, int]]:
    """The run with the time of its end, the kills, and the count of what was seen."""
    draws = random.Random(seed)
    run = begin(nodes, run_dir, steps)
    while run.look() < 5:
        _refuse_end(run)
        time.sleep(_LOOK_EVERY_S)
    kills: list[Kill] = []
    next_kill = run.steps[-1][0] + draws.uniform(*EVERY_S)
    node_back = float("inf")
    while run.process.poll() is None:
        run.look()
        now = time.monotonic() - run.began
        if now >= node_back:
            nodes.add()
            node_back = float("inf")
        if now >= next_kill and now < seconds:
            kind = draws.choice(KINDS)
            if strike(nodes, run, kind, draws):
                kills.append(Kill(now, kind))
                print(f"{kills[-1].at_s:7.1f} s, step {run.steps[-1][1]:6}: {kind}", flush=True)
                node_back = kills[-1].at_s + NODE_BACK_S if kind == "node" else node_back
            next_kill = time.monotonic() - run.began + draws.uniform(*EVERY_S)
        time.sleep(_LOOK_EVERY_S)
    run.look()
    wall_s = time.monotonic() - run.began
    run.steps.append((wall_s, run.steps[-1][1]))
    if run.process.returncode:
        raise SystemExit(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-3000:]}")
    for kill, after in zip(kills, [*(kill.at_s for kill in kills[1:]), wall_s], strict=True):
        kill.pause_s = run.longest_pause(kill.at_s, after)
    return run, kills, count(run_dir)


def strike(nodes: Nodes, run: Watched, kind: str, draws: random.Random) -> bool:
    """Let the fault happen; False where it cannot right now, as while workers start."""
    if kind == "node":
        nodes.kill(draws.choice(nodes.workers))
        return True
    if kind == "second start":
        second = _given(run.command, run.environment, run.run_dir.with_suffix(".second.log"))
        if second.wait(timeout=_PATIENCE_S) == 0 and run.process.poll() == 0:  # the run was complete before the second start looked
            return False
        _check_end(second, 2, run.run_dir.with_suffix(".second.log"), "is in use")
        return True
    if kind in SIGNALS or kind == "full disk":
        workers = doing(TRAIN_WORKER, *nodes.processes())
        if not workers:
            return False
        if kind in SIGNALS:
            run.process.send_signal(signal.Signals[kind])
        for pid in workers if kind == "full disk" else ():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_ROOM_BYTES, _ROOM_BYTES))
        words = "step" if kind in SIGNALS else "could not be written"
        _check_end(run.process, SIGNALS.get(kind, 2), run.run_dir.with_suffix(".log"), words)
        run.give_again()
        return True
    try:
        kill_one(TRAIN_WORKER if kind == "worker" else STYLIZER, *nodes.processes(), patience_s=10)
    except AssertionError:
        return False
    return True


def _check_end(process: subprocess.Popen[bytes], code: int, log: Path, words: str) -> None:
    ended = process.wait(timeout=_PATIENCE_S)
    text = " ".join(log.read_text(errors="replace").split())
    if ended != code or words not in text:
        raise SystemExit(f"the command ended with {ended}, not with {code} and a message with {words!r}:\n{log.read_text()[-3000:]}")


def count(run_dir: Path) -> dict[str, int]:
    """Rows trained on by the steps of the run, distinct (epoch, sample) pairs among them, and how many of these are missing or twice."""
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    seen = checkpoint.seen
    trained = checkpoint.step * BATCH
    distinct = sum(seen.count(epoch) for epoch in range(trained // seen.num_rows + 2))
    whole = sum(seen.count(epoch) == seen.num_rows for epoch in range(trained // seen.num_rows))
    return {
        "rows": trained,
        "distinct": distinct,
        "whole_epochs": whole,
        "epochs": trained // seen.num_rows,
        "wrong": abs(trained - distinct),
    }


def _refuse_end(run: Watched) -> None:
    if run.process.poll() is not None:
        raise SystemExit(f"the run ended at once:\n{run.run_dir.with_suffix('.log').read_text()[-3000:]}")


if __name__ == "__main__":
    main()
