"""One trial of a search: a whole pretraining run in the trial's own actor, which reports at each evaluation.

The run continues in a thread while Tune decides. When Tune ends the trial, the run is asked to stop as by Ctrl-C, so it saves a checkpoint
and releases its workers and their resources. (A Ray Train job whose driver is killed keeps its placement group until the state API is asked
to remove it.)
"""

from __future__ import annotations

import ctypes
import gc
import json
import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError

from ray_sassl.config.files import model_from_yaml, to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.runtime.weights import receive_weights
from ray_sassl.runs.files import CONFIG
from ray_sassl.study.record import INDEX, StudyConfig, trial_dir
from ray_sassl.study.space import Point
from ray_sassl.train.checkpoint_folder import MANIFEST, whole_checkpoints
from ray_sassl.train.loop import EVALUATION, num_evaluations
from ray_sassl.types import RunResult

_LOOK_EVERY_S = 0.5
_SAVE_TIMEOUT_S = 120.0
_KEPT_EXCHANGES = 2
ENDED = "ended"
"""How a trial's run ended by itself: `finished`, or `interrupted` after a stop request to the whole study."""

Pretrain = Callable[..., RunResult]
"""`launch.pretrain`, or what replaces it in simulations."""


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of a study share.

    Attributes:
        study_yaml: The study's config.
        study_dir: The study's directory.
        num_rows: Rows of the data set.
        control: The study's `StudyControl`.
        pretrain: Runs one config.
        keepers: Actors by stylizer's name that hold its weights for nodes without them.
    """

    study_yaml: str
    study_dir: str
    num_rows: int
    control: ActorHandle
    pretrain: Pretrain
    keepers: Mapping[str, ActorHandle] = field(default_factory=dict)

    @cached_property
    def study(self) -> StudyConfig:
        return model_from_yaml(StudyConfig, self.study_yaml, "the study")

    def config(self, point: Point) -> ExperimentConfig:
        """The trial's experiment.

        A run in the trial's process uses only the CPUs that are reserved for it. Population based training exchanges checkpoints, so it
        needs one at each evaluation. No trial uses the test images, so that none is chosen by them.
        """
        config = self.study.space.config(self.study.base, point)
        scaling, train = config.scaling, config.train
        if scaling.num_workers == 0 and scaling.threads_per_worker is None:
            scaling = scaling.model_copy(update={"threads_per_worker": max(1, int(scaling.cpus_per_worker))})
        if self.study.scheduler == "pbt":
            train = train.model_copy(update={"checkpoint_every": train.evaluate_every, "checkpoint_min_s": 0.0})
        return without_test(config.model_copy(update={"scaling": scaling, "train": train}))


class TrialRun:
    """A pretraining run in a thread, as a sequence of evaluations.

    Args:
        config: The trial's experiment.
        num_rows: Rows of the data set.
        should_stop: Whether the whole study is to stop; called now and then.
        on_progress: Is called with the metrics between evaluations.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: str,
        num_rows: int,
        pretrain: Pretrain,
        should_stop: Callable[[], bool],
        on_progress: Callable[[dict[str, float]], None],
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self._num_evaluations = num_evaluations(config.train, num_rows)
        self._pretrain, self._should_stop, self._on_progress = pretrain, should_stop, on_progress
        self._update: queue.Queue[dict[str, Any] | RunResult | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._latest: dict[str, float] = {}
        self._speeds: list[float] = []
        self._evaluated = 0
        self.evaluated_step = 0
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._thread = threading.Thread(target=self._run, name="pretrain", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            resume = storage.exists(storage.join(self.run_dir, CONFIG))
            self._update.put(self._pretrain(self.config, self.run_dir, resume=resume, watch=self._watch, stop=self._stop))
        except BaseException as error:  # noqa: BLE001 - raised by `next`, in the thread that Tune looks at
            self._update.put(error)

    def _watch(self, update: ProgressUpdate) -> None:
        for report in update.reports:
            self._latest.update(report)
            if "images_per_s" in report:
                self._speeds.append(report["images_per_s"])
            self._on_progress(dict(self._latest))
            if (number := int(report.get(EVALUATION, 0))) > self._evaluated:  # restarted workers repeat some
                self._evaluated = number
                speed = {"images_per_s": statistics.median(self._speeds)} if self._speeds else {}
                self._update.put(self._latest | speed | self._cost())

    def _cost(self) -> dict[str, Any]:
        """Work of this attempt so far; with CPU time if all of it is done in this process."""
        cpu_s = time.process_time() - self._cpu_began if self.config.scaling.num_workers == 0 else None
        return {"attempt_wall_s": time.monotonic() - self._began, "attempt_cpu_s": cpu_s}

    def next(self) -> dict[str, Any]:
        """Wait for the next evaluation, with `done` and `ended` after the last.

        Raises:
            Exception: the run failed.
        """
        item = self._wait()
        if isinstance(item, dict):
            self.evaluated_step = int(item.get("step", 0))
        last = {}
        if isinstance(item, dict) and item[EVALUATION] >= self._num_evaluations:
            last, item = item, self._wait()
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, RunResult):
            return last | self._cost() | {"done": True, ENDED: item.status}
        return item

    def _wait(self) -> dict[str, Any] | RunResult | BaseException:
        while True:
            try:
                return self._update.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                if self._should_stop():
                    self._stop.set()

    def has_checkpoint(self) -> bool:
        """Whether the checkpoint of the last evaluation exists, or never will."""
        return not self._thread.is_alive() or any(step >= self.evaluated_step for step, _ in whole_checkpoints(self.run_dir))

    def end(self) -> None:
        """Stop the run at its next step, where it saves a checkpoint, and wait for it."""
        self._stop.set()
        self._thread.join()


class PretrainTrial(tune.Trainable):
    """A trial as Tune drives it: each `step` is one evaluation. Later trials use the same actor, which saves its start."""

    def setup(self, config: dict[str, Any], spec: TrialSpec | None = None) -> None:
        assert spec is not None
        self._spec = spec
        self._take(config)

    def _take(self, config: dict[str, Any]) -> None:
        self._number: int = config["number"]
        self._point: Point = dict(config["point"])
        self._run: TrialRun | None = None
        self._is_owner = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._run is None:
            self._run = self._start()
        return self._run.next()

    def cleanup(self) -> None:
        if self._run is not None:
            self._run.end()
            self._run = None
            _give_back_memory()
        if self._is_owner:
            ray.get(self._spec.control.leave.remote(self._number, _this_actor()))
            self._is_owner = False

    def give_way(self, number: int) -> None:
        """End the trial's run if it is in this actor: another actor is to continue it."""
        if number == self._number:
            self.cleanup()

    def _own(self) -> None:
        """Wait until no other actor has a run in the trial's folder: when Tune moves a member of a population, it starts a new actor for it
        while the old one is still stopping.

        Raises:
            GetTimeoutError: the other run does not end.
        """
        control, deadline = self._spec.control, time.monotonic() + _SAVE_TIMEOUT_S
        while (owner := cast(Any, ray.get(control.take.remote(self._number, _this_actor())))) is not None:
            try:
                ray.get(owner.give_way.remote(self._number), timeout=max(0.0, deadline - time.monotonic()))
            except ActorDiedError:
                ray.get(control.leave.remote(self._number, owner))
            except ActorUnavailableError:  # Ray does not know yet whether it is dead
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_EVERY_S)
        self._is_owner = True

    def _start(self) -> TrialRun:
        spec = self._spec
        if spec.study.scheduler == "pbt":
            self._own()
        run_dir = trial_dir(spec.study_dir, self._number)
        index, shared = storage.join(run_dir, INDEX), storage.join(spec.study_dir, INDEX)
        if not storage.exists(index) and storage.exists(shared):  # the data set is indexed once for the whole study
            Index.load(shared).save(index)
        number, config = self._number, spec.config(self._point)
        config_file = storage.join(run_dir, CONFIG)
        if spec.study.scheduler == "pbt" and storage.exists(config_file):
            # A move may have been interrupted: either its checkpoint is lost, or its point is not in the record yet.
            storage.write_text(config_file, to_yaml(config))
        receive_weights(config.stylize, spec.keepers.get(config.stylize.name))
        return TrialRun(
            config,
            run_dir,
            spec.num_rows,
            spec.pretrain,
            should_stop=lambda: bool(ray.get(spec.control.stop_requested.remote())),
            on_progress=lambda metrics: spec.control.report.remote(number, metrics),
        )

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Copy the run's newest checkpoint, for population based training to give to another trial; returns its place."""
        run_dir = trial_dir(self._spec.study_dir, self._number)
        if self._run is not None:
            deadline = time.monotonic() + _SAVE_TIMEOUT_S
            while time.monotonic() < deadline and not self._run.has_checkpoint():
                time.sleep(0.1)  # the checkpoint of an evaluation is written right after it
        checkpoints = whole_checkpoints(run_dir)
        if not checkpoints:
            return {"number": self._number, "checkpoint": None}
        _, newest = checkpoints[-1]
        exchange = storage.join(run_dir, "exchange")
        copy = storage.join(exchange, storage.name_of(newest))
        copy_folder(newest, copy)
        for entry in storage.list_dir(exchange)[:-_KEPT_EXCHANGES]:
            storage.remove(entry.path)
        return {"number": self._number, "checkpoint": copy}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Continue from another trial's checkpoint; a trial's own checkpoints are in its run directory."""
        self.cleanup()
        if not checkpoint or checkpoint["number"] == self._number or not checkpoint["checkpoint"]:
            return
        if not storage.exists(storage.join(checkpoint["checkpoint"], MANIFEST)):
            return  # a retry long after the exchange: the trial has newer checkpoints of its own
        self._own()
        run_dir = trial_dir(self._spec.study_dir, self._number)
        storage.remove(storage.join(run_dir, "checkpoints"))
        copy_folder(checkpoint["checkpoint"], storage.join(run_dir, "checkpoints", storage.name_of(checkpoint["checkpoint"])))
        storage.write_text(storage.join(run_dir, CONFIG), to_yaml(self._spec.config(self._point)))


def without_test(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without the evaluation on test images."""
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"final_test": False})})


def _this_actor() -> ActorHandle:
    return ray.get_runtime_context().current_actor


def _give_back_memory() -> None:
    """Return freed memory to the system. Otherwise glibc keeps it for each thread: some 500 MB per trial in an actor that is used again."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def copy_folder(source: str, target: str) -> None:
    """Copy a checkpoint's files, the manifest last, so that a copy with a manifest is complete."""
    entries = sorted(storage.list_dir(source), key=lambda entry: storage.name_of(entry.path) == MANIFEST)
    for entry in entries:
        storage.write_bytes(storage.join(target, storage.name_of(entry.path)), storage.read_bytes(entry.path))


def point_of(config: dict[str, Any]) -> Point:
    """The point in a trial's Tune config, with plain numbers."""
    return json.loads(json.dumps(config["point"]))
