"""Why a run is as fast as it is: the share of time of each rank and stage, the rate of each stage, and the bottleneck in a sentence."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ray_sassl.process.stages import RANK_STAGES, STREAM_STAGES, Spent, stack_of
from ray_sassl.train.watchdog import Beat

_SLOW = 0.1
"""The share of the time from which on a stage other than the updates is what holds a run up, where the stages run beside each other."""
_APART = 0.15
"""The share by which a rank differs from the mean of all before it is named."""
_BUSY = 0.8
"""The share of the time in which the stylizers of a pool are busy when they are the stream's slowest part."""


@dataclass(frozen=True)
class Stream:
    """Where the stream runs, for advice.

    Attributes:
        kind: `local` in the training process before each step, `threads` in it beside the steps, `tasks` on Ray, or `pool` with actors.
        num_stylizers: Actors of the pool at most.
    """

    kind: str = "local"
    num_stylizers: int = 0


class RankClock:
    """What a rank does now, and how long it has done each since the last look. What is nothing else is the step."""

    def __init__(self, step: int) -> None:
        self.step, self.stage = step, "step"
        self._since = self._stepped_at = time.perf_counter()
        self._first_step, self._thread = step, threading.get_ident()
        self._seconds = dict.fromkeys(RANK_STAGES, 0.0)
        self._recent: deque[float] = deque(maxlen=50)

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Count the time within as the stage's."""
        before = self.stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, source: str, stage: str, seconds: float) -> None:
        """Count seconds that were counted as one stage's as another's."""
        self._seconds[source] -= seconds
        self._seconds[stage] += seconds

    def stepped(self, step: int) -> None:
        """Note that an update is done."""
        now = time.perf_counter()
        if self.step > self._first_step:  # the first step waits for the stream to start, and for kernels to be chosen
            self._recent.append(now - self._stepped_at)
        self.step, self._stepped_at = step, now

    def taken(self) -> dict[str, float]:
        """Seconds in each stage since the last look."""
        self.enter(self.stage)
        seconds, self._seconds = self._seconds, dict.fromkeys(RANK_STAGES, 0.0)
        return seconds

    def beat(self, rank: int) -> Beat:
        """What this rank does now; called from another thread."""
        now = time.perf_counter()
        usual_s = statistics.median(self._recent) if self._recent else None
        return Beat(rank, self.step, self.stage, now - max(self._since, self._stepped_at), usual_s, stack_of(self._thread))

    def enter(self, stage: str) -> None:
        """Begin a stage, which lasts until another begins."""
        now = time.perf_counter()
        self._seconds[self.stage] += now - self._since
        self.stage, self._since = stage, now


@dataclass(frozen=True)
class Speed:
    """What an epoch's time went to.

    Attributes:
        images_per_s: Of the whole run.
        ranks: By rank: the share of its time in each of `RANK_STAGES`.
        busy: By stage of the stream: how many processes or threads were in it, on average.
        rates: By stage of the stream: images a second of one process or thread.
        bottleneck: What holds the run up and what would help, in a sentence.
    """

    images_per_s: float
    ranks: list[dict[str, float]]
    busy: dict[str, float]
    rates: dict[str, float]
    bottleneck: str

    def as_dict(self) -> dict[str, Any]:
        """For `summary.json`."""
        return asdict(self)

    def as_metrics(self) -> dict[str, float]:
        """For the metrics: the shares are means over the ranks."""
        return {
            **{f"share_{stage}": share for stage, share in mean_shares(self.ranks).items()},
            **{f"busy_{stage}": value for stage, value in self.busy.items()},
            **{f"rate_{stage}": value for stage, value in self.rates.items()},
        }


def advice_on_steps(device_type: str, *, is_float32: bool, is_compiled: bool) -> str:
    """What makes updates faster that is not used yet. A CPU has no use for the options of GPUs."""
    if device_type == "cpu":
        return "take a GPU, a smaller encoder (backbone.name), smaller views (views.size_px), or more CPUs for more workers"
    options = ["more workers (scaling.num_workers)", "train.precision=bfloat16" * is_float32, "train.compile=true" * (not is_compiled)]
    return f"take {' or '.join(filter(None, options))}"


def speed(seconds: Sequence[Mapping[str, float]], spent: Spent, num_images: int, stream: Stream, faster_steps: str) -> Speed:
    """What the time went to.

    Args:
        seconds: By rank: seconds in each of `RANK_STAGES`.
        spent: By all processes of the stream meanwhile.
        num_images: That the run has trained on meanwhile.
        faster_steps: What would help where the updates take the time.
    """
    elapsed = max(sum(seconds[0].values()), 1e-9)
    ranks = [{stage: rank.get(stage, 0.0) / max(sum(rank.values()), 1e-9) for stage in RANK_STAGES} for rank in seconds]
    busy = {stage: spent[stage][0] / elapsed for stage in STREAM_STAGES if stage in spent}
    rates = {stage: spent[stage][1] / spent[stage][0] for stage in busy if spent[stage][0] > 0}
    return Speed(num_images / elapsed, ranks, busy, rates, _bottleneck(ranks, busy, rates, stream, faster_steps))


def mean_shares(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over the ranks of each stage's share."""
    return {stage: statistics.fmean(rank[stage] for rank in ranks) for stage in RANK_STAGES}


_ADVICE = {
    "transfer": "take more CPUs for each worker (scaling.cpus_per_worker), or smaller views (views.size_px)",
    "score": "score less often (train.evaluate_every) or on fewer images (evaluate.online_rows)",
    "checkpoint": "write checkpoints less often (train.checkpoint_every, train.checkpoint_min_s) or to faster storage (run_dir)",
}
_DOING = {
    "transfer": "waits for batches to reach the device",
    "step": "computes its steps",
    "score": "computes scores",
    "checkpoint": "stands still for checkpoints",
}


def _bottleneck(
    ranks: list[dict[str, float]], busy: Mapping[str, float], rates: Mapping[str, float], stream: Stream, faster_steps: str
) -> str:
    shares = mean_shares(ranks)
    largest = max((stage for stage in RANK_STAGES if stage != "step"), key=lambda stage: shares[stage])
    enough = shares["step"] if stream.kind == "local" else _SLOW  # one after the other, the longest counts
    stage = largest if shares[largest] > enough else "step"
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank][stage])
    where = f", worker {slowest} {ranks[slowest][stage]:.0%}" if ranks[slowest][stage] > shares[stage] + _APART else ""
    if stage != "wait":
        return f"Training {_DOING[stage]} {shares[stage]:.0%} of the time{where}. To be faster, {_ADVICE.get(stage, faster_steps)}."
    if not busy:
        return f"Training waits for the stream {shares[stage]:.0%} of the time{where}."
    part = _slowest_part(busy, stream)
    total = sum(busy.values())
    rate = f", {rates[part]:,.0f} images/s in one {'actor' if _is_pool(part, stream) else 'process'}" if rates.get(part) else ""
    text = f"Training waits for the stream {shares[stage]:.0%} of the time{where}, whose slowest stage is {part}"
    return f"{text} ({busy[part] / total:.0%} of its time{rate}). To be faster, {_stream_advice(part, shares[stage], busy, stream)}."


def _is_pool(part: str, stream: Stream) -> bool:
    return stream.kind == "pool" and part == "stylize"


def _slowest_part(busy: Mapping[str, float], stream: Stream) -> str:
    """The stage that takes most; of a pool, its stylizers only where they are busy nearly all of the time."""
    if stream.kind == "pool" and "stylize" in busy:
        others = {stage: value for stage, value in busy.items() if stage != "stylize"}
        if not others or busy["stylize"] > _BUSY * stream.num_stylizers:
            return "stylize"
        busy = others
    return max(busy, key=lambda stage: busy[stage])


def _stream_advice(part: str, waits: float, busy: Mapping[str, float], stream: Stream) -> str:
    """What would make the stage as fast as the updates: the processes that are busy now do their share in the time that is not waited."""
    more = waits / max(1 - waits, 0.05)
    if _is_pool(part, stream):
        number = math.ceil(stream.num_stylizers * more)
        return f"take {number} more stylizer{'s' if number > 1 else ''} (stream.pool.max), or a faster stylizer"
    number = max(1, math.ceil(sum(value for stage, value in busy.items() if not _is_pool(stage, stream)) * more))
    cpus = f"give the stream's tasks {number} more CPU{'s' if number > 1 else ''}"
    if stream.kind in ("local", "threads"):
        cpus = "take more threads (stream.local_threads)" if stream.kind == "threads" else "decode in threads (stream.local_threads)"
    match part:
        case "read":
            return f"keep encoded images on the nodes (data.cache_gb) or nearer to them, or {cpus}"
        case "stylize":
            return f"{cpus}, or stylize on a GPU (stream.pool.num_gpus)"
        case _:
            return cpus
