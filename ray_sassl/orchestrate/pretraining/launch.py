"""`pretrain(config, ...)`: one run, from a config to a `RunResult`, on Ray or (with `scaling.num_workers=0`) in this process."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast

import ray
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig
from ray.train import ScalingConfig as RayScalingConfig
from ray.train.torch import TorchTrainer

from ray_sassl.cluster.plan import read_prices
from ray_sassl.config.files import to_yaml
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import QuarantineFile
from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.files.own import write_picture
from ray_sassl.files.paths import absolute, with_absolute_paths
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate, start_control
from ray_sassl.orchestrate.pretraining.preflight import (
    check_data,
    check_evaluation,
    check_resources,
    check_workers,
    resource_needs,
    stream_needs,
    uses_gpu,
    worker_bundle,
)
from ray_sassl.orchestrate.pretraining.resizing import CheckpointBeforeResize
from ray_sassl.orchestrate.pretraining.sharing import StreamFactory, StreamsOfWorkers
from ray_sassl.orchestrate.pretraining.stream import stream_spec
from ray_sassl.orchestrate.pretraining.train_job import RunFailedError, Watch, WorkersFailedError, fit
from ray_sassl.orchestrate.pretraining.worker import train_worker
from ray_sassl.orchestrate.runtime.autoscaler import asked_for
from ray_sassl.orchestrate.runtime.capacity import is_one_machine
from ray_sassl.orchestrate.runtime.definitions import read_definition
from ray_sassl.orchestrate.runtime.devices import pretends_gpus
from ray_sassl.orchestrate.runtime.rendezvous import torch_config
from ray_sassl.orchestrate.runtime.reservation import release_reservation
from ray_sassl.orchestrate.runtime.scanning import Scanning
from ray_sassl.orchestrate.runtime.session import in_group, ray_session
from ray_sassl.orchestrate.runtime.weights import driver_weights, keep_weights
from ray_sassl.pipeline import local_batches, without
from ray_sassl.process.ending import Stopped, after, lastly, on_notice, told
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import prepare_run_dir, settled, write_summary
from ray_sassl.runs.dose import write_doses
from ray_sassl.runs.dosing import NUM_IMAGES, measure
from ray_sassl.runs.files import QUARANTINE, SUMMARY, VIEWS
from ray_sassl.runs.pictures import first_block, views_picture
from ray_sassl.runs.process import build_style_augmentation, build_stylize_block, train_process, view_source
from ray_sassl.runs.start import START, keep_start
from ray_sassl.runs.teacher import build_teacher, keep_teacher, with_teacher
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.train.checkpoint_folder import all_damaged, list_checkpoints
from ray_sassl.train.config import micro_batch
from ray_sassl.train.context import LocalContext
from ray_sassl.train.speed import Speed, Stream
from ray_sassl.types import Outcome, RunResult

log = logging.getLogger(__name__)

_SUMMARIZE = f"write {SUMMARY}"


def pretrain(
    config: ExperimentConfig,
    run_dir: str,
    *,
    resume: bool = False,
    data_moved: bool = False,
    address: str | None = None,
    watch: Watch = lambda update: None,
    stop: threading.Event | None = None,
    known: Index | None = None,
    checked: EvaluateConfig | None = None,
) -> RunResult:
    """Pretrain an encoder; the record is the run directory.

    The first Ctrl-C stops the run at the next step with a checkpoint; the second one at once. SIGTERM, SIGHUP and
    `fault.preempt_signal` do the same, and end the run at once after `fault.grace_s`. In another thread than the main one signals are left
    alone.

    Args:
        config: The whole run.
        run_dir: Local path or pyarrow filesystem URI; on a cluster of several nodes all of them must reach it.
        resume: Whether to continue the run in the run directory.
        data_moved: For a run to resume: whether its data may be elsewhere now, if their content is the same.
        address: Address of a running Ray cluster.
        watch: Called with the progress.
        stop: When it is set, the run stops as after the first Ctrl-C.
        known: An index that was just built, which is used for a new run if it is of the run's data.
        checked: Images that are known to be fit to evaluate on.

    Raises:
        UsageError: the config, data, run directory or cluster do not allow the run; nothing was trained.
        RunFailedError: the run ended by an error.
    """
    run_dir = absolute(run_dir)
    config = settled(with_absolute_paths(config), run_dir, resume=resume)
    config, teacher = with_teacher(config, run_dir, resume=resume)
    check_workers(config)
    driver_weights(config.stylize)  # missing ones are told before the data are looked through
    if config.evaluate != checked:
        check_evaluation(config)
    with ExitStack() as stack:
        scanning = Scanning(lambda: stack.enter_context(ray_session(address))) if config.scaling.num_workers else None
        index = prepare_run_dir(config, run_dir, resume=resume, data_moved=data_moved, known=known, each=scanning)
    config = config.model_copy(update={"data": index.config})
    if mixing := check_data(config, index):
        watch(ProgressUpdate(told=[mixing]))
    if not resume or not storage.exists(storage.join(run_dir, START)):
        keep_start(config, run_dir)
    if teacher is not None:
        keep_teacher(config, teacher, run_dir)
    if not resume:
        _show_views(config, run_dir)
    launch = _pretrain_here if config.scaling.num_workers == 0 else partial(_pretrain_on_ray, address=address)
    metrics: dict[str, float] = {}
    speed: Speed | None = None

    def observe(update: ProgressUpdate) -> None:
        nonlocal speed
        for report in update.reports:
            metrics.update(report)
        speed = update.speed or speed
        watch(update)

    def summarize(status: str, reason: str | None, stopped_by: str | None = None) -> RunResult:
        result = replace(_result(status, run_dir, metrics, reason, stopped_by), speed=speed and speed.as_dict())
        write_summary(result)
        return result

    stop = stop or threading.Event()
    try:
        with on_notice(stop.set, grace_s=config.fault.grace_s, preempt_signal=config.fault.preempt_signal) as notice:
            outcome = launch(config, run_dir, index, observe, stop)
    except KeyboardInterrupt as error:
        name = error.signal.name if isinstance(error, Stopped) else "SIGINT"
        after(error, _SUMMARIZE, partial(summarize, "interrupted", f"stopped at once {error}".strip(), name))
        raise
    except BaseException as error:
        after(error, _SUMMARIZE, partial(summarize, "failed", told(error)))
        raise
    reason = None
    if outcome.status == "interrupted":
        who = "the user" if notice.signal in (None, "SIGINT") else notice.signal
        reason = f"stopped by {who} at step {outcome.step}; add --resume to continue from its checkpoint"
    try:
        return summarize(outcome.status, reason, notice.signal if reason else None)
    except OSError as error:
        raise UsageError(f"the run was {outcome.status} at step {outcome.step}, but could not {_SUMMARIZE}: {error}") from error


def _show_views(config: ExperimentConfig, run_dir: str) -> None:
    """Write the picture of the views, and how strong their augmentations are."""
    source, style = view_source(config, run_dir), build_style_augmentation(config, "cpu", 1)
    block = first_block(source)
    write_picture(storage.join(run_dir, VIEWS), views_picture(config, source, block, style and style.stylize))
    write_doses(run_dir, measure(config, block, style, NUM_IMAGES), min(NUM_IMAGES, len(block.sample_id)))


def _result(status: str, run_dir: str, metrics: dict[str, float], reason: str | None, stopped_by: str | None = None) -> RunResult:
    checkpoints = list_checkpoints(run_dir)
    step, path = checkpoints[-1] if checkpoints else (0, None)
    return RunResult(status, step, run_dir, path, metrics, reason, stopped_by)


def _pretrain_here(config: ExperimentConfig, run_dir: str, index: Index, watch: Watch, stop: threading.Event) -> Outcome:
    """The run in this process, without Ray."""
    source = view_source(config, run_dir)
    resume = latest_checkpoint(run_dir)
    if resume is None and list_checkpoints(run_dir):
        raise all_damaged(run_dir)
    bad_rows = QuarantineFile(storage.join(run_dir, QUARANTINE), index.num_rows, config.data.max_bad_fraction)
    bad_rows.load()
    bad_rows.add(index.problems)
    seen = without(resume.seen if resume else SeenIds(index.num_rows), bad_rows.quarantine.sample_ids)

    class Context(LocalContext):
        def report(self, metrics: dict[str, float]) -> None:
            watch(ProgressUpdate([metrics], num_bad=bad_rows.quarantine.num_bad))

        def report_speed(self, speed: Speed) -> None:
            watch(ProgressUpdate(speed=speed, num_bad=bad_rows.quarantine.num_bad))

        def stop_requested(self) -> bool:
            return stop.is_set()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.scaling.threads_per_worker or torch.get_num_threads())
    num_threads = config.stream.local_threads or (1 if device.type == "cpu" else _num_cpus())
    is_serial = device.type == "cpu" and num_threads == 1
    context = Context(device=device, stream=Stream("local" if is_serial else "threads"), stall_s=config.fault.stall_s)
    batches = local_batches(
        source,
        epochs=config.train.epochs,
        batch_size=micro_batch(config.train, 1),
        on_bad=bad_rows.add,
        stylize_block=build_stylize_block(config, "cpu", torch.get_num_threads()),
        seen=seen,
        accumulate=config.train.accumulate,
        times=context.times,
        num_threads=num_threads,
        teach=build_teacher(config, run_dir, device.type, torch.get_num_threads()),
    )
    with lastly(f"write {QUARANTINE}", bad_rows.save):
        return train_process(config, run_dir, batches, index.num_rows, context, resume)


def _num_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pretrain_on_ray(
    config: ExperimentConfig, run_dir: str, index: Index, watch: Watch, stop: threading.Event, address: str | None
) -> Outcome:
    """The run as a TorchTrainer fed by a Ray Data stream."""
    if config.scaling.is_elastic:  # how long to wait for a lost node before the run continues without it
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    with ray_session(address):
        release_reservation(run_dir)
        use_gpu = uses_gpu(config)
        check_resources(config, use_gpu)
        control = start_control(
            index.num_rows,
            config.data.max_bad_fraction,
            storage.join(run_dir, QUARANTINE),
            run=storage.name_of(run_dir),
            prices=_prices(config),
            stall_s=config.fault.stall_s,
        )
        if fatal := ray.get(control.add_bad.remote(list(index.problems))):
            raise UsageError(fatal)

        refused: set[str] = set()
        while True:
            before = _newest_step(run_dir)
            try:
                _fit(config, run_dir, index, watch, stop, control, use_gpu)
            except WorkersFailedError as error:
                if not config.scaling.max_failures or stop.is_set() or _newest_step(run_dir) <= before:
                    raise
                log.warning(
                    "The workers have failed %d times since step %d, but got further; they start again. The last failure: %s",
                    config.scaling.max_failures + 1,
                    before,
                    error,
                )
                continue
            refused_before = refused
            fatal, outcome, refused = ray.get([control.fatal.remote(), control.outcome.remote(), control.refused.remote()])
            if fatal:
                raise RunFailedError(fatal)
            if outcome is not None:
                return outcome
            assert refused > refused_before, "the workers ended without an outcome and without an error"


def _newest_step(run_dir: str) -> int:
    return max((step for step, _ in list_checkpoints(run_dir)), default=0)


def _fit(
    config: ExperimentConfig,
    run_dir: str,
    index: Index,
    watch: Watch,
    stop: threading.Event,
    control: ActorHandle,
    use_gpu: bool,
) -> None:
    """Train until the workers end: with an outcome, with an error, or because they refused the checkpoint to start from."""
    scaling = config.scaling
    streams = StreamFactory(
        stream_spec(config, view_source(config, run_dir)), run_dir, control, keep_weights(config.stylize), scaling.num_workers
    )
    spec = {
        "config_yaml": to_yaml(config),
        "run_dir": run_dir,
        "num_rows": index.num_rows,
        "num_threads": scaling.threads_per_worker,
        "control": control,
    }
    with tempfile.TemporaryDirectory(prefix="ray-sassl-") as ray_storage:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=spec,
            datasets=cast(Any, {"train": streams}),
            dataset_config=StreamsOfWorkers(),
            scaling_config=RayScalingConfig(
                num_workers=(scaling.worker_counts[0], scaling.num_workers) if scaling.is_elastic else scaling.num_workers,
                use_gpu=use_gpu,
                resources_per_worker=worker_bundle(config, use_gpu),
                label_selector=in_group(scaling.node_group),
                elastic_resize_monitor_interval_s=scaling.resize_every_s,
            ),
            torch_config=torch_config("gloo" if pretends_gpus() else None),
            run_config=RunConfig(
                name="train",
                storage_path=ray_storage if is_one_machine() else storage.join(run_dir, ".ray"),
                failure_config=FailureConfig(max_failures=scaling.max_failures),
                callbacks=cast(Any, [CheckpointBeforeResize(control, run_dir)]) if scaling.is_elastic else None,
            ),
        )
        with asked_for(stream_needs(config)):
            fit(trainer, control, watch, resource_needs(config, use_gpu), stop)
        release_reservation(run_dir)


def _prices(config: ExperimentConfig) -> dict[str, float] | None:
    """USD per hour of a machine of each group, if the config names a file with prices."""
    if config.tracking.prices is None:
        return None
    prices = read_prices(read_definition(config.tracking.prices), config.tracking.prices)
    return {group: kind["usd_per_hour"] for group, kind in prices.model_dump().items() if kind["usd_per_hour"] is not None}
