"""One small actor per run: passes the stop request to the workers, their progress to the terminal, and bad rows to the quarantine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import ray
from ray.actor import ActorHandle

from ray_sassl.data.quarantine import BadRow, QuarantineFile, TooManyBadRowsError
from ray_sassl.files import storage
from ray_sassl.orchestrate.runtime.metrics import CostMeter, set_bad_rows
from ray_sassl.orchestrate.runtime.session import pin_to_driver
from ray_sassl.process.stages import Spent, Standing
from ray_sassl.train.speed import Speed
from ray_sassl.train.watchdog import Beat, Watchdog
from ray_sassl.types import Outcome


@dataclass
class ProgressUpdate:
    """The progress since the last call.

    Attributes:
        reports: Logged steps, in order.
        notes: Warnings of the workers.
        told: Lines that are no warnings.
        num_bad: Rows in quarantine.
        fatal: Why the run cannot continue, as a message for the user, or None.
        waiting: The resources that the run waits for, in words, or an empty string.
        speed: What the newest epoch's time went to, if an epoch has ended since.
    """

    reports: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    num_bad: int = 0
    fatal: str | None = None
    waiting: str = ""
    speed: Speed | None = None


@dataclass(frozen=True)
class Requests:
    """What workers ask the control actor for at their steps.

    Attributes:
        stop: Whether the run should stop.
        wants_checkpoint: Whether a checkpoint is needed before its workers are restarted.
        spent: The time of the stream's processes so far.
    """

    stop: bool = False
    wants_checkpoint: bool = False
    spent: Spent = field(default_factory=dict)


class RunControl:
    """The actor's state. Its calls are short, and reports to it do not wait for the answer.

    Args:
        num_rows: Rows of the data set.
        max_bad_fraction: The run fails if more rows are bad.
        quarantine_path: File of bad rows; existing ones are read.
        run: The run's name, for its metrics.
        prices: USD per hour of a node of each group, if known.
        stall_s: As in the config's `fault.stall_s`.
    """

    def __init__(
        self,
        num_rows: int,
        max_bad_fraction: float,
        quarantine_path: str,
        run: str,
        prices: Mapping[str, float] | None,
        stall_s: float = 60.0,
    ) -> None:
        self._file = QuarantineFile(quarantine_path, num_rows, max_bad_fraction)
        self._quarantine = self._file.quarantine
        self._update = ProgressUpdate()
        self._stop = False
        self._wants_checkpoint = False
        self._start: str | None = None
        self._refused: set[str] = set()
        self._fatal: str | None = None
        self._outcome: Outcome | None = None
        self._run = run
        self._has_complained = False
        self._watchdog = Watchdog(stall_s)
        self._spent: dict[str, tuple[float, int]] = {}
        self._cost = CostMeter(run, prices) if prices is not None else None
        try:
            self._file.load()
        except TooManyBadRowsError as error:
            self.fail(str(error))

    def add_bad(self, rows: list[BadRow]) -> str | None:
        """Add rows to the quarantine; returns the reason to stop if there are too many."""
        try:
            self._quarantine.add(rows)
        except TooManyBadRowsError as error:
            self.fail(str(error))
        self._save(self._file.save_if_due)
        return self._fatal

    def bad_rows(self) -> list[BadRow]:
        """Those that are listed."""
        return self._quarantine.rows

    def _save(self, save: Callable[[], None]) -> None:
        """Bring the quarantine's file up to date; where that fails, as on a full disk, that is said once, and tried again later."""
        try:
            save()
        except (OSError, storage.StorageError) as error:
            if not self._has_complained:
                self.note(f"The quarantine cannot be written: {error}. The run goes on.")
            self._has_complained = True

    def bad_ids(self) -> np.ndarray:
        """(n,) int64: the samples in quarantine."""
        return self._quarantine.sample_ids

    def fail(self, reason: str) -> None:
        """Note that the run cannot continue, and that restarting workers would not help."""
        self._fatal = self._fatal or reason

    def fatal(self) -> str | None:
        return self._fatal

    def request_stop(self) -> None:
        self._stop = True

    def requests(self) -> Requests:
        return Requests(self._stop, self._wants_checkpoint, self._spent)

    def add_spent(self, spent: Spent, standing: Standing | None) -> None:
        """Take the time that a process of the stream has spent since it last told, and what it does now."""
        for stage, (seconds, images) in spent.items():
            before = self._spent.get(stage, (0.0, 0))
            self._spent[stage] = before[0] + seconds, before[1] + images
        if standing is not None:
            self._watchdog.note_stream(standing)

    def beat(self, beat: Beat) -> None:
        """Take what a worker does."""
        self._watchdog.note(beat)

    def leave(self, rank: int) -> None:
        """Note that a worker has done its part."""
        self._watchdog.leave(rank)

    def report_speed(self, speed: Speed) -> None:
        self._update.speed = speed

    def start_from(self, path: str | None) -> None:
        """Set the checkpoint from which the starting workers continue."""
        self._start = path
        self._watchdog.forget()

    def start(self) -> str | None:
        return self._start

    def refuse(self, path: str, reason: str) -> None:
        """Note that a worker has found the checkpoint damaged, so that the run starts from the one before."""
        if path not in self._refused:
            self._refused.add(path)
            self.note(f"Refused a checkpoint, trying the one before it. {reason}")

    def refused(self) -> set[str]:
        """The paths of the checkpoints that workers have found damaged."""
        return self._refused

    def request_checkpoint(self, wanted: bool) -> None:
        self._wants_checkpoint = wanted

    def report(self, metrics: dict[str, float]) -> None:
        self._update.reports.append(metrics)
        if self._cost is not None and "images_per_s" in metrics:
            self._cost(metrics["images_per_s"])

    def note(self, text: str) -> None:
        self._update.notes.append(text)

    def finish(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def outcome(self) -> Outcome | None:
        self._save(self._file.save)
        return self._outcome

    def progress(self) -> ProgressUpdate:
        """The progress since the last call."""
        self._save(self._file.save_if_due)
        set_bad_rows(self._run, self._quarantine.num_bad)  # a gauge that is not set regularly disappears from the endpoint
        if alarm := self._watchdog.alarm(object_store_use):
            self.note(alarm)
        update, self._update = self._update, ProgressUpdate()
        update.num_bad, update.fatal = self._quarantine.num_bad, self._fatal
        return update


def start_control(
    num_rows: int,
    max_bad_fraction: float,
    quarantine_path: str,
    *,
    run: str = "",
    prices: Mapping[str, float] | None = None,
    stall_s: float = 60.0,
) -> ActorHandle:
    """The run's control actor, with the arguments of `RunControl`; it takes no CPU and ends with the driver."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=pin_to_driver(), max_concurrency=1)(RunControl)
    return remote.remote(num_rows, max_bad_fraction, quarantine_path, run, prices, stall_s)


def object_store_use() -> float:
    """The share of the cluster's object stores that is in use."""
    total, free = (resources.get("object_store_memory", 0.0) for resources in (ray.cluster_resources(), ray.available_resources()))
    return 1 - free / total if total else 0.0


class NoteHandler(logging.Handler):
    """Shows a worker's warnings in the driver's terminal."""

    def __init__(self, control: ActorHandle) -> None:
        super().__init__(logging.WARNING)
        self._control = control

    def emit(self, record: logging.LogRecord) -> None:
        self._control.note.remote(self.format(record))
