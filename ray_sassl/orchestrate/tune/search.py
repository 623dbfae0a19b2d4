"""`search(study, study_dir)`: run the trials of a search space on Ray Tune and keep the study's record.

Tune starts and stops trials. The record alone decides what is tried next (`study.searcher`) and has everything that a resumed study needs.
Nothing is restored from Tune's own files.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ray_sassl.config.files import to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.reading import cached_index
from ray_sassl.evaluation.online import ONLINE_SCORES
from ray_sassl.files import storage
from ray_sassl.files.paths import absolute, with_absolute_paths
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.pretraining.preflight import check_evaluation
from ray_sassl.orchestrate.runtime import private
from ray_sassl.orchestrate.runtime.autoscaler import Waiting
from ray_sassl.orchestrate.runtime.capacity import is_one_machine
from ray_sassl.orchestrate.runtime.reasons import reason_of
from ray_sassl.orchestrate.runtime.scanning import Scanning
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.orchestrate.runtime.watched import run_watched
from ray_sassl.orchestrate.runtime.weights import driver_weights, keep_weights
from ray_sassl.orchestrate.tune.control import start_control
from ray_sassl.orchestrate.tune.resources import actor_resources, num_concurrent, trial_needs
from ray_sassl.orchestrate.tune.scheduler import build_scheduler, replay, replay_open
from ray_sassl.orchestrate.tune.trial import (
    ENDED,
    Pretrain,
    PretrainTrial,
    TrialSpec,
    point_of,
    without_test,
)
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.ending import lastly, on_notice
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import index_to_continue
from ray_sassl.study.record import INDEX, Evaluation, StudyConfig, TrialRecord, open_study, write_tables, write_trial
from ray_sassl.study.searcher import suggest
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.train.loop import EVALUATION, num_evaluations

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_LAST_SAVE_S = 300.0
_FAILURES_TO_GIVE_UP = 3
"""The study is given up after so many failed trials at its start."""
_LOGGED = ("loss", "images_per_s", "embedding_std", "effective_rank")
"""Metrics that every run reports in addition to its scores."""
_TUNE_ENVIRONMENT = {
    # We keep the record ourselves. Tune writes no logs, and seldom its snapshots, which nothing reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # A trial that is stopped before its first evaluation has no metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The record has the reason of a failure.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass
class StudyState:
    """What the terminal, Tune's searcher and Tune's callback share; each holds the lock while it reads or writes.

    Attributes:
        trials: Trials by number.
        progress: The newest metrics of running trials, between evaluations.
        concurrent: How many trials run at once.
        evaluations: How many evaluations a whole trial has.
        num_earlier: How many trials the study had before this search.
        is_stopping: Whether no more trials are started.
        stopped_by: The signal that stopped the search, such as "SIGTERM", or None.
        waiting: The resources that the first trial waits for, in words.
    """

    study: StudyConfig
    study_dir: str
    trials: dict[int, TrialRecord]
    concurrent: int = 1
    evaluations: int = 1
    num_earlier: int = 0
    progress: dict[int, dict[str, float]] = field(default_factory=dict)
    is_stopping: bool = False
    stopped_by: str | None = None
    waiting: str = ""
    began: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def stop(self) -> None:
        """Stop the running trials with a checkpoint each, and start no more."""
        self.is_stopping = True

    @property
    def records(self) -> list[TrialRecord]:
        """The trials in order."""
        with self.lock:
            return [self.trials[number] for number in sorted(self.trials)]


Watch = Callable[[StudyState], None]
"""Is called with the study several times a second, in the main thread."""


def search(
    study: StudyConfig,
    study_dir: str,
    *,
    resume: bool = False,
    data_moved: bool = False,
    address: str | None = None,
    watch: Watch = lambda state: None,
    run: Pretrain = pretrain,
) -> StudyState:
    """Run the study's trials and record them in the study directory.

    The first Ctrl-C or other signal (see `pretrain`), or the end of the time budget, stops the running trials. Each saves a checkpoint,
    from which `resume` continues.

    Args:
        study: The whole study.
        study_dir: Local path or pyarrow filesystem URI; all nodes of a cluster must have access to it.
        resume: Whether to continue the study in the directory: finished trials are kept, open ones continued.
        data_moved: For a study to resume: its data may be elsewhere now, if their content is the same.
        address: Address of a running Ray cluster.
        watch: Shows progress.
        run: Runs one trial; simulations replace it.

    Raises:
        UsageError: the space, data, directory or cluster do not allow the study, and nothing was run; or the first trials all failed.
    """
    study_dir = absolute(study_dir)
    study = study.model_copy(update={"base": with_absolute_paths(study.base)})
    stylizers = _check(study)
    records = open_study(study, study_dir, resume=resume, data_moved=data_moved)
    index_path = storage.join(study_dir, INDEX)
    if resume and storage.exists(index_path):
        index = index_to_continue(study.base.data, index_path, data_moved=data_moved)
    else:
        with ExitStack() as stack:
            scanning = Scanning(lambda: stack.enter_context(ray_session(address)))
            index = cached_index(study.base.data, index_path, with_content=True, each=scanning)
    state = StudyState(study, study_dir, {record.number: record for record in records})
    state.num_earlier = len(records)
    state.evaluations = num_evaluations(study.base.train, index.num_rows)
    scheduler = build_scheduler(study, state.evaluations)
    replay(scheduler, [record for record in records if not record.is_open])
    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    fault = study.base.fault
    with (
        on_notice(state.stop, grace_s=fault.grace_s, preempt_signal=fault.preempt_signal) as notice,
        ray_session(address),
    ):
        state.concurrent = num_concurrent(study)
        # Otherwise Tune would start one actor after the other; `RecordSearcher` limits how many there are.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(state.concurrent)
        control = start_control()
        keepers = {config.name: keeper for config in stylizers if (keeper := keep_weights(config)) is not None}
        if run is pretrain:
            run = partial(run, checked=without_test(study.base).evaluate)
        run = partial(run, data_moved=True) if data_moved else run
        spec = TrialSpec(to_yaml(study), study_dir, index.num_rows, control, run, keepers)
        with tempfile.TemporaryDirectory(prefix="ray-sassl-tune-") as folder:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(PretrainTrial, spec=spec), actor_resources(study.base)),
                tune_config=tune.TuneConfig(
                    num_samples=-1, search_alg=RecordSearcher(state, scheduler), scheduler=scheduler, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=folder if is_one_machine() else storage.join(study_dir, ".tune"),
                    failure_config=tune.FailureConfig(max_failures=study.retries),
                    # Otherwise a stopped trial would train on until its run's next checkpoint.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[RecordKeeper(state)],
                    verbose=0,
                ),
            )
            with lastly("write the study's tables", lambda: write_tables(study, study_dir, state.records)):
                _fit(tuner, state, control, watch, Waiting(trial_needs(study.base, is_alone=True)))
    state.stopped_by = notice.signal
    if reason := too_many_failures(state):
        raise UsageError(
            f"the first {_FAILURES_TO_GIVE_UP} trials failed before their first evaluation, so no more were started; the last one failed "
            f"with: {reason}"
        )
    return state


def _check(study: StudyConfig) -> list[StylizerConfig]:
    """Check that the study can be run; returns the stylizers that its trials may have, whose weights are on this machine."""
    for goal in study.goals:
        _check_is_measured(goal.metric, study.base)
    check_evaluation(without_test(study.base))
    if study.scheduler == "pbt" and study.searcher == "grid":
        raise UsageError(
            "scheduler pbt changes the trials that are running, so it cannot work through a grid; use searcher random or optuna"
        )
    if study.scheduler == "pbt" and study.max_concurrent is not None and study.max_concurrent < study.num_trials:
        raise UsageError(
            f"population based training runs all {study.num_trials} trials at once, not {study.max_concurrent}; lower --trials, or omit "
            "--max-concurrent"
        )
    if study.searcher == "hyperband-bayes" and len(study.goals) > 1:
        raise UsageError(
            f"searcher hyperband-bayes learns from one objective at several budgets, but {len(study.goals)} are given; keep one "
            "--objective, or use --searcher optuna for several"
        )
    stylizers = {config.stylize.name: config.stylize for config in study.space.check(study.base)}
    for stylizer in stylizers.values():
        driver_weights(stylizer)
    return list(stylizers.values())


def _check_is_measured(metric: str, config: ExperimentConfig) -> None:
    evaluate = config.evaluate
    scores = {f"{name}_top1": name for name in ONLINE_SCORES}
    if metric.removeprefix("test_") in scores and metric not in scores:
        raise UsageError(
            f"{metric} is measured on the test images, and a config that is chosen by them scores too well on them; use "
            f"{metric.removeprefix('test_')}, which is measured on evaluate.validation"
        )
    if metric in scores:
        if evaluate.train is None:
            raise UsageError(
                f"{metric} is measured on labeled images: set evaluate.train, as in 'evaluate.train={{path: FOLDER}}'; trials are scored "
                "on evaluate.validation, or on a share of evaluate.train without it"
            )
        if evaluate.online not in (scores[metric], "both"):
            raise UsageError(
                f"{metric} is not measured with evaluate.online={evaluate.online}; set evaluate.online={scores[metric]} or both"
            )
        return
    known = [*scores, *_LOGGED]
    if metric not in known:
        raise UsageError(f"no run reports {metric!r}{did_you_mean(metric, known)}; objectives are {', '.join(known)}")


def _fit(tuner: tune.Tuner, state: StudyState, control: ActorHandle, watch: Watch, waiting: Waiting) -> None:
    """Run Tune, show its progress and stop it when that is asked for or the time is up."""
    budget = state.study.time_budget_s
    is_told = False

    def look(is_running: bool) -> None:
        nonlocal is_told
        if is_running:
            if budget is not None and not state.is_stopping and time.monotonic() - state.began > budget:
                log.warning("The time budget is used up: the running trials save a checkpoint and stop.")
                state.stop()
            if state.is_stopping and not is_told:
                control.request_stop.remote()
                is_told = True
            progress = cast(dict[int, dict[str, float]], ray.get(control.progress.remote()))
            with state.lock:
                state.progress.update({number: metrics for number, metrics in progress.items() if state.trials[number].is_open})
            has_begun = bool(state.progress) or not all(trial.is_open for trial in state.records)
            state.waiting = waiting.look(has_begun=has_begun)
        watch(state)

    with _time_for_last_checkpoints():
        error = run_watched(tuner.fit, look, every_s=_LOOK_EVERY_S)
    if error is not None:
        raise UsageError(f"an error of Ray Tune ended the search: {reason_of(error)}") from error


@contextmanager
def _time_for_last_checkpoints() -> Iterator[None]:
    """Within the block, Tune waits for the trials that end last until they have saved, and not ten seconds at most."""
    controller: Any = private.TuneController
    clean_up = controller._cleanup_trials

    def clean_up_patiently(self: Any) -> None:
        self._actor_force_cleanup_timeout = _LAST_SAVE_S
        clean_up(self)

    controller._cleanup_trials = clean_up_patiently
    try:
        yield
    finally:
        controller._cleanup_trials = clean_up


def too_many_failures(state: StudyState) -> str | None:
    """The last reason if the first trials of this search all failed before their first evaluation and no other trial has one: more would
    fail too."""
    trials = state.records[state.num_earlier :]
    first = trials[:_FAILURES_TO_GIVE_UP]
    if len(first) == _FAILURES_TO_GIVE_UP and all(trial.state == "failed" for trial in first) and not any(trial.curve for trial in trials):
        return first[-1].reason
    return None


class RecordSearcher(Searcher):
    """Gives Tune the open trials of an earlier session first, and their curves to the scheduler, then the new trials that `study.searcher`
    suggests."""

    def __init__(self, state: StudyState, scheduler: TrialScheduler) -> None:
        super().__init__()
        self._state, self._scheduler = state, scheduler
        self._open = [record.number for record in state.records if record.is_open]
        self._live: dict[str, int] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        state, study = self._state, self._state.study
        with state.lock:
            if state.is_stopping:
                return Searcher.FINISHED
            if too_many_failures(state):  # finished, unless a running trial does better
                return None if self._live else Searcher.FINISHED
            # A population must exist as a whole; Tune lets its members take turns.
            if study.scheduler != "pbt" and len(self._live) >= state.concurrent:
                return None
            if self._open:
                record = state.trials[self._open.pop(0)]
                record.state, record.reason = "running", None
                replay_open(self._scheduler, trial_id, record)
            else:
                number = len(state.trials)
                known = [found for record in state.records if (found := record.known(study.goals)) is not None]
                point = (
                    suggest(study.space, study.base, known, number, seed=study.seed, searcher=study.searcher, objectives=study.goals)
                    if number < study.num_trials
                    else None
                )
                if point is None:
                    return Searcher.FINISHED
                record = state.trials[number] = TrialRecord(number, point)
            write_trial(state.study_dir, record)
            self._live[trial_id] = record.number
            return {"number": record.number, "point": dict(record.point)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        with self._state.lock:
            self._live.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the record is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RecordKeeper(Callback):
    """Writes what the trials report to Tune into the record."""

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._earlier_s: dict[int, tuple[float, float]] = {}
        self._last_s: dict[int, tuple[float, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _record(self, trial: Trial) -> TrialRecord:
        return self._state.trials[trial.config["number"]]

    def _write(self, record: TrialRecord) -> None:
        write_trial(self._state.study_dir, record)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._state.lock:
            record = self._record(trial)
            record.attempts += 1
            self._write(record)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._state.lock:
            record = self._record(trial)
            record.reason = f"attempt {record.attempts} failed: {_error_of(trial)}"
            self._write(record)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        with self._state.lock:
            record = self._record(trial)
            self._note_move(record, trial, result)
            self._note_cost(record, result)
            metrics = {name: float(value) for name, value in result.items() if _is_metric(name, value)}
            number = result.get(EVALUATION)
            if number is not None and all(goal.metric in metrics for goal in self._state.study.goals[:1]):
                # A retried or resumed trial repeats the evaluations after its checkpoint.
                record.curve = [e for e in record.curve if e.number < number] + [Evaluation(int(number), metrics, record.wall_s)]
            self._write(record)

    def _note_move(self, record: TrialRecord, trial: Trial, result: dict[str, Any]) -> None:
        point = point_of(trial.config)
        if point != record.point:
            record.point = point
            record.moves.append({"evaluation": result.get(EVALUATION), "donor": trial.config.get("donor"), "point": point})

    def _note_cost(self, record: TrialRecord, result: dict[str, Any]) -> None:
        """Reported costs are those of the present attempt, so smaller costs than at the last report mean a new attempt."""
        now = (result["attempt_wall_s"], result["attempt_cpu_s"] or 0.0)
        earlier = self._earlier_s.setdefault(record.number, (record.wall_s, record.cpu_s or 0.0))
        last = self._last_s.get(record.number, (0.0, 0.0))
        if now[0] < last[0]:
            earlier = self._earlier_s[record.number] = (earlier[0] + last[0], earlier[1] + last[1])
        self._last_s[record.number] = now
        record.wall_s = earlier[0] + now[0]
        record.cpu_s = None if result["attempt_cpu_s"] is None else earlier[1] + now[1]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._state.lock:
            record = self._record(trial)
            ended = (trial.last_result or {}).get(ENDED)
            if ended is None:
                record.state, record.reason = "stopped", _stopped_by(self._state.study.scheduler, len(record.curve))
            else:
                record.state, record.reason = (
                    ("finished", None) if ended == "finished" else ("interrupted", "before it finished; --resume continues it")
                )
            self._end(record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._state.lock:
            record = self._record(trial)
            record.state, record.reason = "failed", _error_of(trial)
            self._end(record)

    def _end(self, record: TrialRecord) -> None:
        self._state.progress.pop(record.number, None)
        self._write(record)
        write_tables(self._state.study, self._state.study_dir, self._state.records)


def _stopped_by(scheduler: str, evaluations: int) -> str:
    return f"by {scheduler} after {evaluations} evaluation{'s' if evaluations != 1 else ''}"


def _is_metric(name: str, value: Any) -> bool:
    own = (EVALUATION, "done", "attempt_wall_s", "attempt_cpu_s", "time_total_s", "iterations_since_restore")
    tunes = ("training_iteration", "time_this_iter_s", "timestamp", "pid", "time_since_restore", "timesteps_total", "should_checkpoint")
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in own and name not in tunes


def _error_of(trial: Trial) -> str:
    """Why the trial failed last; Tune copies this to its storage only after it calls us."""
    return reason_of(Path(trial.error_file).read_text() if trial.error_file else None)
