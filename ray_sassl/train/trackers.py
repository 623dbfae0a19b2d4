"""Where metrics go in addition to `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, each in its own thread.

A tracker is a convenience, and the training must not depend on it: on a full disk, a network disk that has gone or a server that does not
answer. So metrics wait for a tracker in a bounded queue; when it is full, further ones are dropped and counted, which is logged once.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import redacted

log = logging.getLogger(__name__)

QUEUE_STEPS = 1000
"""Logged steps that may wait for a tracker."""
CLOSE_S = 20.0
"""How long the end of a run waits for all trackers together."""


class Tracker(Protocol):
    """One destination of metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class InBackground:
    """A tracker in its own thread: no call waits for it, and its errors are logged once and counted.

    Args:
        name: What people call it.
        make: Makes the tracker, in the thread too, since it may have to connect.
        most: How many logged steps may wait.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], most: int = QUEUE_STEPS) -> None:
        self._name, self._make = name, make
        self._waiting: queue.Queue[Callable[[Tracker], None]] = queue.Queue(most)
        self._num_given = self._num_done = 0
        self._has_complained = False
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand over; where the queue is full the step is dropped."""
        self._num_given += 1
        if not self._put(lambda tracker: self._log(tracker, step, metrics)):
            self._complain(f"does not keep up, and {self._waiting.maxsize:,} steps are waiting for it already")

    def flush(self) -> None:
        """Ask for it; nothing waits until it is done."""
        self._put(lambda tracker: tracker.flush())

    def ask_to_close(self) -> None:
        """Nothing is taken any more; what waits is still written."""
        self._has_ended.set()
        self._put(lambda tracker: None)  # wakes the thread; where the queue is full it is awake

    def wait_until_closed(self, until: float) -> None:
        """Wait, at most until the time (of `time.monotonic`), and say what is missing."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._complain("does not answer")
        if missing := self._num_given - self._num_done:
            log.warning("%s lacks %d of the %d steps that were logged; metrics.jsonl has all", self._name, missing, self._num_given)

    def _put(self, work: Callable[[Tracker], None]) -> bool:
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            return False
        return True

    def _log(self, tracker: Tracker, step: int, metrics: dict[str, float]) -> None:
        tracker.log(step, metrics)
        self._num_done += 1

    def _work(self) -> None:
        tracker: Tracker | None = None
        for work in self._until_the_end():
            try:
                tracker = tracker or self._make()
                work(tracker)
            except Exception as error:  # noqa: BLE001  # a library of others: whatever it raises must not end the run
                self._complain(f"failed: {type(error).__name__}: {error}")

    def _until_the_end(self) -> Iterable[Callable[[Tracker], None]]:
        while not (self._has_ended.is_set() and self._waiting.empty()):
            yield self._waiting.get()
        yield lambda tracker: tracker.close()

    def _complain(self, what: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("%s %s. The run goes on, and metrics.jsonl has its metrics.", self._name, redacted(what))


def close_all(trackers: Iterable[InBackground]) -> None:
    """Let all write what waits and end, and wait for that, but not for longer than `CLOSE_S`."""
    until = time.monotonic() + CLOSE_S
    for tracker in trackers:
        tracker.ask_to_close()
    for tracker in trackers:
        tracker.wait_until_closed(until)


class TensorBoard:
    """Event files; for a run directory on an object store they are written to a temporary folder and copied at each flush."""

    def __init__(self, path: str, resume_step: int) -> None:
        self._path, self._resume_step = path, resume_step
        self._temporary = None if storage.local_path(path) else tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name) if self._temporary else Path(str(storage.local_path(path)))
        self._numbers = itertools.count()
        self._file = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        file = self._open()
        try:
            for name, value in metrics.items():
                file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            file.flush()
        except OSError:
            self._file = None  # the file may end within an event, so the next one goes to another file
            raise

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        if self._temporary:
            for file in self._folder.iterdir():
                storage.write_bytes(storage.join(self._path, file.name), file.read_bytes())

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
        if self._temporary:
            self._temporary.cleanup()

    def _open(self) -> Any:
        """The file that is written to. TensorBoard hides what earlier files have from the step on that a run goes on from."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = next(self._numbers)
            file = EventsWriter(str(self._folder / "events"), f".{number}" if number else "")
            if self._resume_step and not number:
                for purge in ({"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}):
                    file.write_event(Event(wall_time=time.time(), step=self._resume_step, **purge))
            self._file = file
        return self._file


class WandB:
    """A run of Weights & Biases of the run directory's name."""

    def __init__(self, wandb: Any, project: str, name: str, run_config: dict[str, Any]) -> None:
        self._run = wandb.init(project=project, name=name, id=name, resume="allow", config=run_config)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """Weights & Biases uploads by itself."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow of the run directory's name. MLflow keeps it by thread, so all calls come from one."""

    def __init__(self, mlflow: Any, experiment: str, name: str, run_config: dict[str, Any]) -> None:
        self._mlflow = mlflow
        mlflow.set_experiment(experiment)
        found = mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list", max_results=1)
        mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=name)
        mlflow.log_dict(run_config, "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def flush(self) -> None:
        """MLflow writes through."""

    def close(self) -> None:
        self._mlflow.end_run()


def import_tracker(package: str, title: str, option: str) -> ModuleType:
    """The package of a tracker.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"tracking.{option} needs {title}: pip install 'ray-sassl[{package}]'") from error
