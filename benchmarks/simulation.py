"""A simulation of a run on 8 to 64 GPUs, block by block: images a second, what the GPUs wait for, and the first bottleneck.

    python -m benchmarks.simulation [--gpus 8 16 32 64] [--slow 0 0.001] [--out FILE]

Nothing runs here: times of parts were measured, or are assumptions (the fields of `Model` say which), and events follow from them. Cores
take tasks of one window each, in the order of a stream: they read the window, and decode and crop block after block. A finished block waits
in the store until all before it in its stream are dealt. A dealer hands the blocks of a stream to the worker that has the fewest, if that
wants one, and the node's network carries it there. Workers step together when each has its part of a batch. A core whose stream has its
share of the store full waits, unless all others wait for its block.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results

GPUS = (8, 16, 32, 64)
_PENDING_BLOCKS = 2
"""Ray Data starts a task only if there is room for so many blocks of each that runs."""
READING: dict[str, dict[str, Any]] = {
    "a window in each task": {},
    "two windows in each task, the second read while the first is decoded": {"window": 2 * 2304},
    "`stream.num_cpus=0.8`: five tasks for four cores": {"cores_per_node": 20},
    "the next task's window read ahead": {"reads_ahead": True},
}
"""Tasks that read from an object store. Five tasks on four cores do not slow each other down here: a fifth of them waits. No task knows
which window its process gets next; the last one says what that would be worth."""
_FULL = 0.9
"""From this share of the time on, a part counts as the bottleneck."""


@dataclass(frozen=True)
class Model:
    """A cluster and a run on it. Rates and sizes are those of 224 px.

    Attributes:
        gpus: Training workers, one on each GPU.
        gpu_images_per_s: Assumption: ResNet-50 in bfloat16 on a large GPU; 77,000 on 64 of them.
        batch: Images of one worker in one step.
        step_cv: Assumption of `cluster plan`: standard deviation of a step over its mean. A step takes as long as on the slowest GPU.
        core_images_per_s: Measured (`benchmarks/stream.py`): decode, two crops and colors on one core through Ray.
        read_s: To read a window from a store of 50 ms latency, measured for 1,024 images (`benchmarks/reading.py`), in proportion.
        window, block: Images of a task and of a block: what `data.shuffle_gb` and `data.block_rows` are by default.
        task_cv: Assumption: standard deviation of a task's decoding time over its mean.
        slow_share, slow_s: Assumption: so many tasks take so many seconds longer.
        slow_task: One task of the first stream that does, by its number; none if it is negative.
        nodes, cores_per_node: Decoding nodes; by default as `cluster plan` would have them, see `planned`.
        store_bytes: Of one node: 40 % (`store_limit.py`) of 30 % of 64 GB.
        image_bytes: Of its two views.
        network_bytes_per_s: Assumption: 10 Gbit/s of a decoding node.
        deal_s: CPU time of the process that schedules a stream, by block: measured at 32 px (`benchmarks/stream.py`), with its idle loop.
        per_rank: Whether each worker has a stream of its own; else one stream feeds all.
        reads_ahead: Whether a core's next window is read while one is decoded.
        prefetch_batches: `stream.prefetch_batches`: a worker wants no block if it has, or will have, so many batches besides its next.
        epoch_images: Of ImageNet.
        save_s: That training stands still for a checkpoint: a copy of 300 MB as measured for 92 MB (`benchmarks/checkpoint.py`), and an
            assumption of 0.2 s for gathering what was seen.
        upload_s: Assumption: 300 MB to an object store at 30 MB/s.
        save_apart_s: Least seconds between two checkpoints; with 0 the next one waits for the one before.
        seed: Of all draws.
    """

    gpus: int = 8
    gpu_images_per_s: float = 1200.0
    batch: int = 64
    step_cv: float = 0.02
    core_images_per_s: float = 396.0
    read_s: float = 1.6
    window: int = 2304
    block: int = 256
    task_cv: float = 0.1
    slow_share: float = 0.0
    slow_s: float = 30.0
    slow_task: int = -1
    nodes: int = 1
    cores_per_node: int = 16
    store_bytes: float = 0.4 * 0.3 * 64e9
    image_bytes: float = 2 * 224**2 * 3
    network_bytes_per_s: float = 1.25e9
    deal_s: float = 0.0038
    per_rank: bool = False
    reads_ahead: bool = False
    prefetch_batches: int = 2
    epoch_images: int = 1_281_167
    save_s: float = 0.26
    upload_s: float = 10.0
    save_apart_s: float = 0.0
    seed: int = 0

    @property
    def wanted_images_per_s(self) -> float:
        """What the GPUs could train on."""
        return self.gpus * self.gpu_images_per_s / (1 + self.step_cv * math.sqrt(2 * math.log(max(self.gpus, 1))))


def planned(model: Model, headroom: float = 0.15) -> Model:
    """The model with as many decoding nodes as `cluster plan` counts, which takes reading for a part of decoding's rate."""
    of_node = min(model.cores_per_node * model.core_images_per_s, model.network_bytes_per_s / model.image_bytes)
    return replace(model, nodes=math.ceil((1 + headroom) * model.wanted_images_per_s / of_node))


@dataclass
class Found:
    """Shares of the time that was looked at.

    Attributes:
        images_per_s: That were trained on.
        waiting: Workers wait for images.
        saving: They stand still for checkpoints.
        reading, decoding, held: Cores read, decode, or wait because the store is full.
        dealing: The busiest dealer is busy.
        network: The nodes' networks are busy, on average.
        bottleneck: In words.
    """

    images_per_s: float
    waiting: float
    saving: float
    reading: float
    decoding: float
    held: float
    dealing: float
    network: float
    bottleneck: str = field(init=False)

    def __post_init__(self) -> None:
        parts = {"one process deals": self.dealing, "network": self.network, "decoding": self.reading + self.decoding}
        name = max(parts, key=lambda part: parts[part])
        is_training = self.waiting < 1 - _FULL and self.waiting < 0.05
        self.bottleneck = "training" if is_training else name if parts[name] >= _FULL else "order of blocks"


@dataclass
class _Core:
    node: int
    idle_since: float = 0.0
    began: float = -math.inf


@dataclass
class _Stream:
    """Tasks in order; `done` has the number of finished blocks of each that is not dealt completely."""

    ranks: list[int]
    next_task: int = 0
    head: int = 0
    head_dealt: int = 0
    stored: int = 0
    running: int = 0
    is_dealing: bool = False
    done: dict[int, deque[int]] = field(default_factory=dict)
    stopped: dict[int, tuple[float, Callable[[], None]]] = field(default_factory=dict)


class Simulation:
    """A run from an empty cluster on.

    Args:
        model: What happens how fast.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.now = model, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._draws = np.random.default_rng(model.seed)
        ranks = list(range(model.gpus))
        self._streams = [_Stream([rank]) for rank in ranks] if model.per_rank else [_Stream(ranks)]
        self._blocks = math.ceil(model.window / model.block)
        self._most_stored = model.nodes * model.store_bytes / model.image_bytes / len(self._streams)
        self._most_ahead = (model.prefetch_batches + 1) * model.batch
        self._has, self._coming = [0.0] * model.gpus, [0.0] * model.gpus
        self._network_free = [0.0] * model.nodes
        self._idle = deque(_Core(node) for _ in range(model.cores_per_node) for node in range(model.nodes))
        self._is_stepping = False
        self._epoch, self._saved_at, self._uploaded_at = 0, -math.inf, 0.0
        self.trained = 0
        self.spent = dict.fromkeys(("waiting", "saving", "reading", "decoding", "held", "network"), 0.0)
        self._dealt_s = [0.0] * len(self._streams)
        self._waits_since = 0.0
        self._start_tasks()

    def run(self, seconds: float, settle: float) -> Found:
        """What happens within so many seconds after the run has settled."""
        self._until(settle)
        before, trained, dealt = self._spent_now(), self.trained, list(self._dealt_s)
        self._until(settle + seconds)
        model, cores = self.model, self.model.nodes * self.model.cores_per_node
        by = {"waiting": 1, "saving": 1, "reading": cores, "decoding": cores, "held": cores, "network": model.nodes}
        after = self._spent_now()
        shares = {name: (after[name] - before[name]) / seconds / number for name, number in by.items()}
        dealing = max(now - then for now, then in zip(self._dealt_s, dealt, strict=True)) / seconds
        return Found((self.trained - trained) / seconds, dealing=dealing, **shares)

    def _spent_now(self) -> dict[str, float]:
        """What was spent, with the waits that have not ended."""
        held = sum(self.now - since for stream in self._streams for since, _ in stream.stopped.values())
        waiting = 0.0 if self._is_stepping else self.now - self._waits_since
        return self.spent | {"held": self.spent["held"] + held, "waiting": self.spent["waiting"] + waiting}

    def _until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._number), event))

    def _start_tasks(self) -> None:
        while self._idle:
            stream = min(self._streams, key=lambda stream: (stream.running, stream.next_task))
            pending = _PENDING_BLOCKS * self.model.block * (stream.running + 1)
            if stream.stored + pending > self._most_stored and stream.running:
                return
            self._start_task(self._idle.popleft(), stream)

    def _start_task(self, core: _Core, stream: _Stream) -> None:
        model, number = self.model, stream.next_task
        stream.next_task, stream.running = number + 1, stream.running + 1
        stream.done[number] = deque()
        read_s = max(0.0, model.read_s - (self.now - core.began)) if model.reads_ahead else model.read_s
        core.began = self.now + read_s
        self.spent["reading"] += read_s
        mean = model.block / model.core_images_per_s
        block_s = mean * max(0.1, 1 + model.task_cv * self._draws.standard_normal())
        is_slow = self._draws.random() < model.slow_share or (number == model.slow_task and stream is self._streams[0])
        extra_s = model.slow_s if is_slow else 0.0
        self._at(self.now + read_s + extra_s, lambda: self._make_block(core, stream, number, self._blocks, block_s))

    def _make_block(self, core: _Core, stream: _Stream, number: int, left: int, block_s: float) -> None:
        began = self.now
        if stream.stored >= self._most_stored and number != stream.head:
            stream.stopped[number] = began, lambda: self._go_on(core, stream, number, left, block_s, began)
            return
        self.spent["decoding"] += block_s
        self._at(self.now + block_s, lambda: self._finish_block(core, stream, number, left, block_s))

    def _go_on(self, core: _Core, stream: _Stream, number: int, left: int, block_s: float, since: float) -> None:
        self.spent["held"] += self.now - since
        self._make_block(core, stream, number, left, block_s)

    def _finish_block(self, core: _Core, stream: _Stream, number: int, left: int, block_s: float) -> None:
        stream.done[number].append(core.node)
        stream.stored += self.model.block
        if left > 1:
            self._make_block(core, stream, number, left - 1, block_s)
        else:
            stream.running -= 1
            self._idle.append(core)
            self._start_tasks()
        self._deal(stream)

    def _deal(self, stream: _Stream) -> None:
        if stream.is_dealing or not stream.done.get(stream.head):
            return
        rank = min(stream.ranks, key=lambda rank: self._has[rank] + self._coming[rank])
        if self._has[rank] + self._coming[rank] > self._most_ahead:
            return
        node = stream.done[stream.head].popleft()
        stream.is_dealing = True
        self._coming[rank] += self.model.block
        self._dealt_s[self._streams.index(stream)] += self.model.deal_s
        self._at(self.now + self.model.deal_s, lambda: self._send(stream, node, rank))

    def _send(self, stream: _Stream, node: int, rank: int) -> None:
        model = self.model
        stream.is_dealing = False
        stream.head_dealt += 1
        if stream.head_dealt == self._blocks:
            del stream.done[stream.head]
            stream.head, stream.head_dealt = stream.head + 1, 0
        takes_s = model.block * model.image_bytes / model.network_bytes_per_s
        self.spent["network"] += takes_s
        self._network_free[node] = max(self.now, self._network_free[node]) + takes_s
        self._at(self._network_free[node], lambda: self._arrive(stream, rank))
        self._deal(stream)

    def _arrive(self, stream: _Stream, rank: int) -> None:
        self._coming[rank] -= self.model.block
        self._has[rank] += self.model.block
        stream.stored -= self.model.block
        for number in sorted(stream.stopped):
            if stream.stored < self._most_stored or number == stream.head:
                stream.stopped.pop(number)[1]()
        self._start_tasks()
        self._step()

    def _step(self) -> None:
        model = self.model
        if self._is_stepping or min(self._has) < model.batch:
            return
        self._is_stepping = True
        self.spent["waiting"] += self.now - self._waits_since
        self._has = [has - model.batch for has in self._has]
        for stream in self._streams:
            self._deal(stream)
        self._at(self.now + model.batch * model.gpus / model.wanted_images_per_s, self._end_step)

    def _end_step(self) -> None:
        model = self.model
        self.trained += model.gpus * model.batch
        stands_s = 0.0
        if self.trained // model.epoch_images > self._epoch:
            self._epoch = self.trained // model.epoch_images
            stands_s = self._save()
        self.spent["saving"] += stands_s
        self._at(self.now + stands_s, self._end_pause)

    def _save(self) -> float:
        """For how long training stands still."""
        model, is_written = self.model, self.now >= self._uploaded_at
        if model.save_apart_s and (not is_written or self.now - self._saved_at < model.save_apart_s):
            return 0.0
        stands_s = max(0.0, self._uploaded_at - self.now) + model.save_s
        self._saved_at = self.now
        self._uploaded_at = self.now + stands_s + model.upload_s
        return stands_s

    def _end_pause(self) -> None:
        self._is_stepping, self._waits_since = False, self.now
        self._step()


def simulated(model: Model, seconds: float = 120.0, settle: float = 60.0) -> Found:
    """What happens in so many seconds of a run that has settled."""
    return Simulation(model).run(seconds, settle)


def variants(gpus: int, slow_share: float) -> dict[str, Model]:
    """The cluster before, and after one change more each time; the last one is the first with all changes but the first."""
    before = planned(Model(gpus=gpus, slow_share=slow_share))
    changes: dict[str, dict[str, Any]] = {
        "one stream": {},
        "+ a stream for each worker": {"per_rank": True},
        "+ 16 batches prefetched": {"prefetch_batches": 16},
        "+ 25 Gbit/s": {"network_bytes_per_s": 25e9 / 8},
        "+ reading ahead": {"reads_ahead": True},
        "+ checkpoints 60 s apart": {"save_apart_s": 60.0},
    }
    found, model = {}, before
    for name, change in changes.items():
        found[name] = model = replace(model, **change)
    larger = replace(model, store_bytes=8 * before.store_bytes)
    return found | {"+ 8 times the store": larger, "the same with one stream": replace(larger, per_rank=False)}


def reading_variants(gpus: int, stores: float) -> dict[str, Model]:
    """Streams for each worker on three quarters of the planned nodes, so that decoding is the limit, with so many times the store."""
    model = planned(Model(gpus=gpus, per_rank=True, prefetch_batches=16, network_bytes_per_s=25e9 / 8))
    model = replace(model, nodes=max(1, model.nodes * 3 // 4), store_bytes=stores * model.store_bytes)
    return {name: replace(model, **change) for name, change in READING.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpus", nargs="+", type=int, default=list(GPUS))
    parser.add_argument("--slow", type=float, nargs="+", default=[0.0, 0.001], help="shares of tasks that take 30 s longer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    details: dict[str, Any] = {"assumptions": asdict(Model()), "cases": []}
    for slow_share in args.slow:
        table = Table("GPUs", "nodes", "", "images/s", "wanted", "waiting", "saving", "reading", "held", "dealing", "bottleneck")
        for gpus in args.gpus:
            for name, model in variants(gpus, slow_share).items():
                found = simulated(model)
                shares = [f"{share:.1%}" for share in (found.waiting, found.saving, found.reading, found.held, found.dealing)]
                rates = [f"{found.images_per_s:,.0f}", f"{model.wanted_images_per_s:,.0f}"]
                table.add_row(str(gpus), str(model.nodes), name, *rates, *shares, found.bottleneck)
                case = {"gpus": gpus, "nodes": model.nodes, "slow_share": slow_share, "variant": name}
                details["cases"].append(case | asdict(found))
        Console(width=180).print(f"{slow_share:.1%} of the tasks take {Model.slow_s:g} s longer", table)
    table = Table("GPUs", "nodes", "stores", "", "images/s", "reading", "held")
    for gpus, stores in ((gpus, stores) for gpus in args.gpus for stores in (1.0, 2.0)):
        for name, model in reading_variants(gpus, stores).items():
            found = simulated(model)
            shares = f"{found.reading:.1%}", f"{found.held:.1%}"
            table.add_row(str(gpus), str(model.nodes), f"{stores:g}", name, f"{found.images_per_s:,.0f}", *shares)
            details["cases"].append({"gpus": gpus, "nodes": model.nodes, "stores": stores, "variant": name} | asdict(found))
    Console(width=180).print("too few decoding nodes, 25 Gbit/s", table)
    goals: list[Goal] = []
    print(f"written to {write_results('simulation', goals, json.loads(json.dumps(details)), args.out)}")


if __name__ == "__main__":
    main()
