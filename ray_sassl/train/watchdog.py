"""Says which rank or stage stands still, and where in the code, when a run takes no steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ray_sassl.process.stages import Standing

TIMES_USUAL = 20
"""A run stands still when no step came for so many times the usual one, and for `fault.stall_s`."""
_PATIENCE = 10
"""How many times as long may pass before the first step, and for scores and a checkpoint, of which each is another time's work."""
_LARGE = 0.9
"""The share of the object store that counts as full."""


@dataclass(frozen=True)
class Beat:
    """What a rank told of itself.

    Attributes:
        rank: Its number.
        step: Updates that it has done.
        stage: What it does.
        seconds: For how long it has done so without a step.
        usual_s: A usual step's time; None before there were two.
        stack: Where its training thread is in the code.
        where: Its process, in words.
    """

    rank: int
    step: int
    stage: str
    seconds: float
    usual_s: float | None
    stack: str
    where: str = ""


class Watchdog:
    """Judges from the beats of all ranks whether the run stands still; the same stall is told once.

    Args:
        stall_s: No alarm before so many seconds without a step.
        clock: Of seconds.
    """

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s, self._clock = stall_s, clock
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._standing: dict[str, tuple[Standing, float]] = {}
        self._progress: tuple[tuple[int, int], float] | None = None
        self._first_step: int | None = None
        self._has_told = False

    def note(self, beat: Beat) -> None:
        """Take a beat."""
        now = self._clock()
        self._beats[beat.rank] = beat, now
        steps = [other.step for other, _ in self._beats.values()]
        reached = min(steps), max(steps)
        if self._first_step is None:
            self._first_step = beat.step
        if self._progress is None or reached != self._progress[0]:
            self._progress, self._has_told = (reached, now), False

    def note_stream(self, standing: Standing) -> None:
        """Take what a process of the stream does."""
        self._standing[standing.where] = standing, self._clock()

    def leave(self, rank: int) -> None:
        """Forget a rank that has done its part."""
        self._beats.pop(rank, None)
        if not self._beats:
            self.forget()

    def forget(self) -> None:
        """Forget all ranks, which will be started anew."""
        self._beats.clear()
        self._standing.clear()
        self._progress, self._first_step, self._has_told = None, None, False

    def alarm(self, store_use: Callable[[], float] = lambda: 0.0) -> str | None:
        """What stands still, and where in the code, if a stall has just become one.

        Args:
            store_use: The share of the fullest node's object store that is in use.
        """
        if self._progress is None or self._has_told:
            return None
        (_, newest), at = self._progress
        waited_s = self._clock() - at
        usual = [beat.usual_s for beat, _ in self._beats.values() if beat.usual_s is not None]
        limit_s = max(self._stall_s, TIMES_USUAL * max(usual, default=0.0))
        if newest == self._first_step or any(beat.stage in ("score", "checkpoint") for beat, _ in self._beats.values()):
            limit_s *= _PATIENCE
        if waited_s <= limit_s:
            return None
        self._has_told = True
        return f"No step for {waited_s:.0f} s after step {newest:,}. {self._culprit(store_use)}"

    def _culprit(self, store_use: Callable[[], float]) -> str:
        now = self._clock()
        beat, heard = min(self._beats.values(), key=lambda noted: noted[1])
        if now - heard > self._stall_s / 2:
            text = f"{_name(beat)} has not answered for {now - heard:.0f} s: its process is stopped, or its machine hangs"
            return f"{text}. When last heard of it was at: {beat.stage}{_at(beat.stack)}"
        oldest = min(beat.step for beat, _ in self._beats.values())
        behind = [beat for beat, _ in self._beats.values() if beat.step == oldest]
        apart = [beat for beat in behind if beat.stage != "step"] or behind  # those in a step may wait for the others
        beat = max(apart, key=lambda beat: beat.seconds)
        if beat.stage == "wait":
            return f"{_name(beat)} waits for the stream. {self._stream_culprit(now, store_use)}"
        if len(behind) == len(self._beats) > 1 and beat.stage == "step":
            text = f"All workers are within step {oldest + 1:,}: a device or the network between them hangs"
            return f"{text}. {_name(beat)} is at{_at(beat.stack)}"
        return f"{_name(beat)} stands still in {beat.stage}{_at(beat.stack)}"

    def _stream_culprit(self, now: float, store_use: Callable[[], float]) -> str:
        use = store_use()
        if use > _LARGE:
            return (
                f"The object store is {use:.0%} full, so the stream has no room for more blocks: end other jobs that hold objects, "
                "give Ray a larger store (--object-store-memory), or lower stream.prefetch_batches."
            )
        known = [standing for standing, heard in self._standing.values() if now - heard <= max(self._stall_s / 2, 10.0)]
        if not known:
            return "None of the stream's processes is at work: tasks or stylizers wait for CPUs or GPUs, or for a node."
        longest = max(known, key=lambda standing: standing.seconds)
        return f"{longest.where} stands still in {longest.stage}, for {longest.seconds:.0f} s{_at(longest.stack)}"


def _name(beat: Beat) -> str:
    return f"Worker {beat.rank}" + (f" ({beat.where})" if beat.where else "")


def _at(stack: str) -> str:
    return f"\n{stack.rstrip()}" if stack else "."


class Heart:
    """Calls `tell` regularly from a thread of its own, until it is closed."""

    def __init__(self, tell: Callable[[], object], every_s: float) -> None:
        self._ends = threading.Event()

        def run() -> None:
            while not self._ends.wait(every_s):
                tell()

        self._thread = threading.Thread(target=run, name="heart", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ends.set()
        self._thread.join()
