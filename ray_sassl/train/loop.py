"""The training loop: batches in, optimizer updates, metrics and checkpoints out. It does not know where the batches come from."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ray_sassl.data.seen import SeenIds
from ray_sassl.nn.collapse import NewestEmbeddings, effective_rank, embedding_std
from ray_sassl.nn.gather import all_gather
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.normalize import Normalization
from ray_sassl.nn.precision import choose_kernels, full_float32
from ray_sassl.process.ending import told
from ray_sassl.process.stages import RANK_STAGES, since
from ray_sassl.train.agreement import Agreement
from ray_sassl.train.checkpoint import Checkpoint
from ray_sassl.train.config import OptimConfig, Progress, TrainConfig, planned_progress
from ray_sassl.train.context import Context, data_parallel, over_ranks
from ray_sassl.train.divergence import DivergenceWatch
from ray_sassl.train.metrics import MetricsLog
from ray_sassl.train.optim import build_optimizer, clip_gradients, set_rates
from ray_sassl.train.prefetch import Prefetcher
from ray_sassl.train.saving import RunSaver
from ray_sassl.train.schedule import share_done
from ray_sassl.train.speed import RankClock, advice_on_steps, speed
from ray_sassl.train.watchdog import Heart
from ray_sassl.types import Arrays, Batch, Outcome

log = logging.getLogger(__name__)


EVALUATION = "evaluation"
"""The name of an evaluation's number in its report. Numbers count from 1 and stay the same when a resumed run repeats an evaluation.
Without labeled images there are no scores, and the number is reported with the first metrics that are logged after the evaluation is
due."""

_BEAT_S = 10.0

FAILED_EVALUATIONS = "failed_evaluations"
"""How many evaluations have failed since the workers were started, in the report of one that has."""

_EVALUATED = "evaluated"
"""In checkpoints, how many evaluations are done; a resumed run makes up for one that a stop has cut short."""


class EvaluationStoppedError(Exception):
    """A stop, or the end of a machine, has cut an evaluation short."""


@dataclass
class Job:
    """The inputs of one training process.

    Attributes:
        method: The network and its loss, on the CPU, seeded and built the same on every rank.
        batches: This rank's stream, in parts as `share_of_batch` says.
        num_rows: Rows of the data set, bad ones included.
        resume: The checkpoint to continue from.
        evaluate: Scores the backbone on validation images; called on all ranks at the same steps, with a function to call now and then,
            which may raise an `EvaluationStoppedError`. If it does so on one rank, it must on all. The scores are those of rank 0.
        final_test: The same on test images, once the run is complete and saved.
        record: Rank 0's metrics log; None on the others.
        same_class: How often images that are compared or styled are of one class, for the record; see `runs/same_class.py`. On rank 0.
        extra_state: Facts to keep in every checkpoint, such as the data's fingerprint.
        accumulate: Parts of this worker's share of a batch, if there are more than the config says; see `share_of_batch`.
        is_ahead: As in `Prefetcher`.
        stall_s: As in the config's `fault.stall_s`.
        num_failed_evaluations: Of this process so far.
    """

    method: Method
    batches: Iterator[Arrays]
    config: TrainConfig
    optim: OptimConfig
    num_rows: int
    seed: int
    run_dir: str
    config_yaml: str
    context: Context
    resume: Checkpoint | None = None
    evaluate: Callable[[nn.Module, Callable[[], None]], dict[str, float]] | None = None
    final_test: Callable[[nn.Module, Callable[[], None]], dict[str, float]] | None = None
    record: MetricsLog | None = None
    same_class: Callable[[Method, Tensor, Tensor, int], dict[str, float]] | None = None
    extra_state: dict[str, Any] = field(default_factory=dict)
    accumulate: int | None = None
    is_ahead: bool | None = None
    stall_s: float = 60.0
    num_failed_evaluations: int = 0


def train(job: Job) -> Outcome:
    """Train to the end, or until a stop is requested; either way the last step is saved as a checkpoint.

    Raises:
        DivergedError: a loss or a weight is not a finite number.
        CheckpointNotWrittenError: the disk is full, or the run directory cannot be reached.
    """
    config, context = job.config, job.context
    progress = planned_progress(config, job.num_rows)
    end_kernels = choose_kernels(context.device, benchmark=config.cudnn_benchmark, tf32=config.tf32)
    method, network = _place(job)
    optimizer = build_optimizer(method, job.optim)
    seen = SeenIds(job.num_rows)
    saver = RunSaver(context, job.run_dir, job.config_yaml, config.keep_checkpoints, method, optimizer, seen, job.extra_state)
    if job.record is not None:
        saver.before = job.record.flush
    if job.resume is not None:
        saver.go_on_from(job.resume)
    step = saver.saved_step
    evaluated = _evaluations_until(step, config, progress) + (step == progress.total_steps)
    if job.resume is not None:
        evaluated = min(evaluated, job.resume.state.get(_EVALUATED, evaluated))
    pixels = method.normalization = Normalization(config.pixel_mean, config.pixel_std, context.device)
    feed = Prefetcher(job.batches, job.accumulate or config.accumulate, context.device, progress.total_steps - step, job.is_ahead)
    clock = RankClock(step)
    meter = _Meter(progress, step, context, clock, config)
    watch = DivergenceWatch(context.device, every_step=context.device.type == "cpu")
    agreement = Agreement(context, num_flags=5)
    heart = Heart(lambda: context.beat(clock.beat(context.rank)), every_s=min(_BEAT_S, job.stall_s / 5))
    status, has_left = "finished", False

    def is_pressed() -> bool:
        return context.stop_requested() or (context.is_leaving() and not has_left)

    def save(lr: float) -> None:
        saver.extra_state[_EVALUATED] = evaluated
        saver.save(step, lr, watch)

    try:
        due = _evaluations_until(step, config, progress)
        with clock.doing("score"):
            if job.evaluate is not None and evaluated < due and _evaluate(job, method, step, due, progress, is_pressed):
                evaluated = due
        while step < progress.total_steps:
            with clock.doing("wait"):
                parts = feed.take()
            clock.move("wait", "transfer", feed.transfer_s)
            if parts is None:  # quarantined rows make the stream a little shorter than the plan
                diverged, _, stopped, _, _ = agreement.settle()
                if diverged:
                    raise saver.diverged(watch, optimizer.param_groups[0]["lr"])
                status = "interrupted" if stopped else status
                break
            lr = set_rates(optimizer, job.optim, step, progress.total_steps, progress.global_batch, progress.num_rows)
            output = _update(network, method, optimizer, parts, job, pixels, step, progress)
            meter.keep(output)
            method.after_step(share_done(step, progress.total_steps, config.schedules))
            step += 1
            rows = [part.rows for part in parts]
            saver.has_trained_on(rows)
            watch.note(step, [part.loss for part in output], rows)
            is_last = step == progress.total_steps
            may_save = not is_last and _is_due(step, config.checkpoint_every, progress)
            logs_now = step % config.log_every == 0 or is_last or step == 1
            due = _evaluations_until(step, config, progress) + is_last
            if logs_now:
                metrics = meter.read(step, output, lr)
                batch_ids = all_gather(parts[-1].sample_id)
                if job.same_class is not None:
                    metrics |= job.same_class(method, parts[-1].sample_id, batch_ids, int(progress.epoch(step - 1)))
                if job.evaluate is None and due > evaluated:
                    metrics[EVALUATION] = evaluated = due
                _record(job, step, metrics)
            wants_save = may_save and context.rank == 0 and saver.is_ready(config.checkpoints_apart_s)
            is_bad = watch.has_seen_one(logs_now or may_save)
            signals = (is_bad, saver.has_failed(), context.stop_requested(), context.is_leaving(), wants_save)
            diverged, failed, stopped, leaving, saves_now = agreement.exchange(signals, at_once=may_save or is_last)
            if diverged:
                raise saver.diverged(watch, lr)
            if failed:
                saver.finish()
            if stopped:
                status = "interrupted"
                break
            # A machine that will go away gets its checkpoint first.
            is_due = job.evaluate is not None and due > evaluated and not is_last and (has_left or not leaving)
            with clock.doing("score"):
                if is_due and _evaluate(job, method, step, due, progress, is_pressed):
                    evaluated = due
            if saves_now or (leaving and not has_left):
                with clock.doing("checkpoint"):
                    save(lr)
                has_left = has_left or leaving
            clock.stepped(step)
        clock.enter("score")
        last = _evaluations_until(step, config, progress) + 1
        if status == "finished" and (job.evaluate is not None or evaluated < last):
            if _evaluate(job, method, step, last, progress, context.stop_requested):
                evaluated = last
            else:
                status = "interrupted"
        clock.enter("checkpoint")
        if not saver.saved or step > saver.saved_step:
            save(optimizer.param_groups[0]["lr"])
        saver.finish()
        clock.enter("score")
        if status == "finished" and job.final_test is not None:
            with _cut_short_by(context, context.stop_requested, "the scores on test images") as (check, is_done):
                if scores := job.final_test(method.backbone, check):
                    _record(job, step, {"epoch": progress.epoch(step)} | scores)
            status = "finished" if is_done() else "interrupted"
    finally:
        end_kernels()
        heart.close()
        context.beat(None)
        agreement.close()
        feed.close()
        saver.close()
    return Outcome(status, step, saver.saved)


def _place(job: Job) -> tuple[Method, nn.Module]:
    """The method on its device with its weights, and the same module wrapped for several workers."""
    config, context = job.config, job.context
    method = job.method
    if job.resume is not None:
        job.resume.load_method(method)
    method = method.to(context.device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.compile:
        for network in method.children():
            if any(True for _ in network.parameters()):  # not the queue and the memories
                network.compile()
    method.train()
    return method, data_parallel(method, context)


def _update(
    network: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    parts: list[Batch],
    job: Job,
    pixels: Normalization,
    step: int,
    progress: Progress,
) -> list[StepOutput]:
    """One optimizer update, which waits for nothing on the device. Random draws depend only on the seed, the step and the rank, so a
    resumed run repeats them."""
    config, context = job.config, job.context
    torch.manual_seed(_seed_of(job.seed, step, context.rank))
    generator = torch.Generator().manual_seed(_seed_of(job.seed, step))
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for number, batch in enumerate(parts):
        views = [pixels(view) for view in batch.views]
        is_last = number == len(parts) - 1
        synchronized = contextlib.nullcontext() if is_last or context.world_size == 1 else network.no_sync()  # type: ignore[operator]
        with synchronized:
            with torch.autocast(context.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output: StepOutput = network(views, generator, batch.sample_id, *([] if batch.targets is None else [batch.targets]))
            (output.loss / len(parts)).backward()
        outputs.append(output)
    for parameter in method.frozen_parameters(step / progress.total_steps):
        parameter.grad = None
    if config.clip_norm:
        clip_gradients([p for p in method.parameters() if p.grad is not None], config.clip_norm, config.clip_scope)
    optimizer.step()
    return outputs


class _Meter:
    """Times and averages since the last logged step; tensors are copied back from the device only in `read`."""

    def __init__(self, progress: Progress, step: int, context: Context, clock: RankClock, config: TrainConfig) -> None:
        self._faster_steps = advice_on_steps(context.device.type, is_float32=config.precision == "float32", is_compiled=config.compile)
        self._progress, self._context, self._clock = progress, context, clock
        self._step = self._epoch_step = step
        self._spent = context.spent()
        self._epoch_seconds = [[0.0] * len(RANK_STAGES) for _ in range(context.world_size)]
        self._newest = NewestEmbeddings()

    def keep(self, outputs: list[StepOutput]) -> None:
        """Keep the embeddings of a step, for the metrics of the next one that is logged."""
        for output in outputs:
            self._newest.add(output.embeddings)

    def read(self, step: int, outputs: list[StepOutput], lr: float) -> dict[str, float]:
        """The metrics of this step; once an epoch also what its time went to. Every rank must call it at the same steps."""
        output = outputs[-1]
        embeddings = self._newest.gathered()
        scalars = {
            "loss": torch.stack([o.loss.detach().float() for o in outputs]).mean(),
            "embedding_std": embedding_std(embeddings),
            "effective_rank": effective_rank(embeddings),
            **{name: value.detach().float() for name, value in output.metrics.items()},
        }
        values = dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
        seconds = self._clock.taken()
        elapsed = max(sum(seconds.values()), 1e-9)
        ranks = over_ranks([values["loss"], *seconds.values()], self._context)
        self._epoch_seconds = [
            [a + b for a, b in zip(sums, rank[1:], strict=True)] for sums, rank in zip(self._epoch_seconds, ranks, strict=True)
        ]
        values |= {
            "loss": statistics.fmean(rank[0] for rank in ranks),
            "epoch": self._progress.epoch(step),
            "chance_loss": output.chance_loss,
            "learning_rate": lr,
            "images_per_s": (step - self._step) * self._progress.global_batch / elapsed,
            "data_wait": seconds["wait"] / elapsed,
            "save_stall": seconds["checkpoint"] / elapsed,
            "num_workers": self._context.world_size,
        }
        self._step = step
        if int(self._progress.epoch(step)) > int(self._progress.epoch(self._epoch_step)) or step == self._progress.total_steps:
            values |= self._speed(step)
            self._epoch_seconds, self._epoch_step = [[0.0] * len(RANK_STAGES) for _ in ranks], step
        return values

    def _speed(self, step: int) -> dict[str, float]:
        """What the time went to since the epoch before; told in the log, and in full to the context."""
        if self._context.rank != 0:
            return {}
        spent = self._context.spent()
        ranks = [dict(zip(RANK_STAGES, seconds, strict=True)) for seconds in self._epoch_seconds]
        num_images = (step - self._epoch_step) * self._progress.global_batch
        found = speed(ranks, since(self._spent, spent), num_images, self._context.stream, self._faster_steps)
        log.info("Epoch %.3g, %.0f images/s. %s", self._progress.epoch(step), found.images_per_s, found.bottleneck)
        self._context.report_speed(found)
        self._spent = spent
        return found.as_metrics()


def _record(job: Job, step: int, metrics: dict[str, float]) -> None:
    if job.record is not None:
        job.record.log(step, metrics)
    if job.context.rank == 0:
        job.context.report({"step": step, **metrics})


def _is_due(step: int, every: int, progress: Progress) -> bool:
    if every:
        return step % every == 0
    return int(progress.epoch(step)) > int(progress.epoch(step - 1))


def num_evaluations(config: TrainConfig, num_rows: int) -> int:
    """The number of the evaluation at the end of a whole run."""
    progress = Progress(num_rows, config.global_batch, config.epochs)
    return _evaluations_until(progress.total_steps, config, progress) + 1


def _evaluations_until(step: int, config: TrainConfig, progress: Progress) -> int:
    """How many evaluations are due up to the step, without the one at the end of the run."""
    step = min(step, progress.total_steps - 1)
    return step // config.evaluate_every if config.evaluate_every else int(progress.epoch(step))


def _evaluate(job: Job, method: Method, step: int, number: int, progress: Progress, is_pressed: Callable[[], bool]) -> bool:
    """Compute the scores and record them; returns whether that is done, and not cut short because time presses. Every rank must call it at
    the same steps. Without labeled images only the evaluation's number is reported: the step's line in the record was written before.
    """
    reached = {EVALUATION: number, "epoch": progress.epoch(step)}
    if job.evaluate is not None:
        with _cut_short_by(job.context, is_pressed, f"the scores at step {step}") as (check, is_done):
            _record(job, step, reached | _scores(job, method.backbone, step, check))
        return is_done()
    if job.context.rank == 0:
        job.context.report({"step": step, **reached})
    return True


@contextlib.contextmanager
def _cut_short_by(context: Context, is_pressed: Callable[[], bool], what: str) -> Iterator[tuple[Callable[[], None], Callable[[], bool]]]:
    """A function to call now and then within the block, which ends the block when time presses, and one that tells whether it has not. It
    ends on all ranks, and rank 0 says so."""
    is_done = True

    def check() -> None:
        if is_pressed():
            raise EvaluationStoppedError

    try:
        yield check, lambda: is_done
    except EvaluationStoppedError:
        is_done = False
        if context.rank == 0:
            log.warning("Stopping: %s are left for later, so that the checkpoint is in time.", what)


def _scores(job: Job, backbone: nn.Module, step: int, check: Callable[[], None]) -> dict[str, float]:
    """The scores; where they cannot be computed, how often that was so. The training is worth more than one score of it."""
    assert job.evaluate is not None
    try:
        with full_float32(job.context.device):
            return job.evaluate(backbone, check)
    except EvaluationStoppedError:
        raise
    except Exception as error:  # noqa: BLE001 - told and counted
        job.num_failed_evaluations += 1
        log.warning("The scores at step %d could not be computed; the run goes on without them. %s", step, told(error))
        return {FAILED_EVALUATIONS: job.num_failed_evaluations}


def _seed_of(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1
