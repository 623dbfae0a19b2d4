"""The stages between a shard and an update of the weights, and how long a process spends in each. Imports neither torch nor Ray."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

STREAM_STAGES: tuple[str, ...] = ("read", "decode", "views", "stylize")
"""Of the stream: encoded images from shards or a store; pixels; crops and color operations; style augmentation."""
RANK_STAGES: tuple[str, ...] = ("wait", "transfer", "step", "score", "checkpoint")
"""Of a training process: waiting for the stream, or for a batch's way to the device; updates; scores; standing still for checkpoints."""

Spent = Mapping[str, tuple[float, int]]
"""By stage: the seconds that processes or threads were in it, and the images that they finished."""

_FRAMES = 30

_own = threading.local()
"""`waited`: the seconds that this thread has waited for its turn."""


@dataclass(frozen=True)
class Standing:
    """What a thread of the stream does now.

    Attributes:
        stage: The stage.
        seconds: Since when.
        stack: Where it is in the code.
        where: The process, in words.
    """

    stage: str
    seconds: float
    stack: str
    where: str = "this process"


class StageTimes:
    """The time that the threads of a process spend in the stages of the stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[str, tuple[float, int]] = {}
        self._now: dict[int, tuple[str, float]] = {}

    @contextmanager
    def stage(self, name: str, images: int = 0) -> Iterator[None]:
        """Count the time within as the stage's, in which so many images are finished, but not what is waited for a turn. Stages are not
        nested."""
        thread, began, waited = threading.get_ident(), time.perf_counter(), _waited()
        self._now[thread] = name, began
        try:
            yield
        finally:
            del self._now[thread]
            with self._lock:
                seconds, number = self._spent.get(name, (0.0, 0))
                self._spent[name] = seconds + time.perf_counter() - began - (_waited() - waited), number + images

    def total(self) -> Spent:
        """The time so far."""
        with self._lock:
            return dict(self._spent)

    def standing(self) -> Standing | None:
        """The thread that has been in its stage for longest, if any is in one."""
        now = list(self._now.items())
        if not now:
            return None
        thread, (stage, began) = min(now, key=lambda item: item[1][1])
        return Standing(stage, time.perf_counter() - began, stack_of(thread))


@contextmanager
def in_turn(turn: threading.Lock) -> Iterator[None]:
    """Hold the lock; the time until this thread gets it belongs to the thread that has it, and counts as no stage of this one."""
    began = time.perf_counter()
    with turn:
        _own.waited = _waited() + time.perf_counter() - began
        yield


def _waited() -> float:
    return getattr(_own, "waited", 0.0)


def since(before: Spent, now: Spent) -> Spent:
    """What was spent between two totals."""
    return {
        stage: (seconds - before.get(stage, (0, 0))[0], images - before.get(stage, (0, 0))[1]) for stage, (seconds, images) in now.items()
    }


def stack_of(thread: int) -> str:
    """The innermost calls of a thread of this process, as a traceback shows them; empty where it has ended."""
    frame = sys._current_frames().get(thread)
    return "" if frame is None else "".join(traceback.format_stack(frame)[-_FRAMES:])
