"""The configs of training: length, batch and optimizer, and what follows from them. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_sassl.plugins import EXTENDABLE, OPERATIONAL, ROUNDING, FrozenConfig
from ray_sassl.process.errors import UsageError
from ray_sassl.train.schedule import Counting, Ramp

_CHECKPOINTS_APART_S = 60.0


class TrainConfig(FrozenConfig):
    """Length, batch, precision and periods of a run. Periods are in steps; 0 means once an epoch."""

    epochs: Annotated[float, EXTENDABLE] = Field(default=100.0, gt=0)
    """Passes over the data; a fraction is allowed."""
    global_batch: int = Field(default=256, gt=0)
    """Images of one optimizer update, over all workers and accumulated parts."""
    accumulate: Annotated[int, EXTENDABLE] = Field(default=1, ge=1)
    """Parts that a worker's share of the batch is cut into. Each part has its own negatives and batch statistics."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast: weights, losses and the optimizer stay in float32."""
    channels_last: bool = True
    compile: Annotated[bool, OPERATIONAL] = False
    """torch.compile on the encoder, its heads and their momentum copies; the first step then takes minutes."""
    tf32: Annotated[bool, ROUNDING] = True
    """On GPUs, networks in float32 multiply with TF32 (10 bits of mantissa): several times as fast. Losses keep the whole float32."""
    cudnn_benchmark: Annotated[bool, OPERATIONAL] = True
    """On GPUs, the first steps time several kernels of each convolution and keep the quickest. Which one that is may differ from start to
    start, and with it the last digits."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Gradients are scaled down to this l2 norm; 0 leaves them as they are."""
    clip_scope: Literal["whole", "parameter"] = "whole"
    """Whether that is the norm of all gradients together, or of each parameter's gradient by itself (the official code of DINO)."""
    schedules: Counting = "(s+1)/n"
    """How the schedules of a method (momentum, temperature) count update `s` (from 0) of `n`: `s/n` in the official codes of BYOL and DINO.
    MoCo v3's, which moves its momentum encoder before the next step, is `(s+1)/n`."""
    log_every: Annotated[int, OPERATIONAL] = Field(default=20, ge=1)
    checkpoint_every: Annotated[int, OPERATIONAL] = Field(default=0, ge=0)
    checkpoint_min_s: Annotated[float | None, OPERATIONAL] = Field(default=None, ge=0)
    """Least seconds between two checkpoints of this period: one that comes sooner is passed over, and so is one that comes while the one
    before is still being written. 0: none is, and training waits for the one that is being written. By default 60 with a checkpoint once an
    epoch, and 0 with `checkpoint_every` in steps."""
    keep_checkpoints: Annotated[int, OPERATIONAL] = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept; two, so that a damaged one has a predecessor."""
    evaluate_every: Annotated[int, OPERATIONAL] = Field(default=0, ge=0)
    """Period of the evaluations during the run (`evaluate.online`), if the data to evaluate on are given."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from RGB in [0, 1]; ImageNet's, as in the torchvision reference."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def checkpoints_apart_s(self) -> float:
        """`checkpoint_min_s`, or what stands for it."""
        return self.checkpoint_min_s if self.checkpoint_min_s is not None else 0.0 if self.checkpoint_every else _CHECKPOINTS_APART_S

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> Self:
        if self.clip_scope != "whole" and not self.clip_norm:
            raise ValueError("train.clip_scope has no effect with train.clip_norm=0; set train.clip_norm, or train.clip_scope=whole")
        return self


class OptimConfig(FrozenConfig):
    """The optimizer, its learning rate and its weight decay."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    base_lr: float = Field(default=0.03, gt=0)
    """Peak learning rate before scaling; see `lr_scaling`. 0.03 for a batch of 256 is MoCo's."""
    bias_lr: float | None = Field(default=None, gt=0)
    """The same for biases and the scales and shifts of norm layers, by default `base_lr`; in the official code of Barlow Twins 0.0048 where
    `base_lr` is 0.2."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the peak follows the global batch: `linear` base_lr * batch / 256, `sqrt` base_lr * sqrt(batch), `none` base_lr."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Length of the linear warm-up, in epochs."""
    warmup_start_lr: float = Field(default=0.0, ge=0)
    """Learning rate that the warm-up starts from, not scaled; 0.3 in SwAV's scripts for large batches."""
    warmup_ramp: Ramp = "(s+1)/(n+1)"
    """How update `s` (from 0) of a warm-up of `n` counts: `s/n` in most official codes, `s/(n-1)` in those of SwAV and DINO."""
    lr_changes: Literal["step", "epoch"] = "step"
    """Whether the rate follows its schedule at every step, or only at the first step of each epoch (the official codes of MoCo v2 and
    SimSiam)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD and LARS; the first beta of AdamW."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """The second beta of AdamW, by default 0.999; an error for other optimizers."""
    weight_decay: float = Field(default=1e-4, ge=0)
    final_weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay at the end of the run, toward which it moves along a half cosine; by default it stays. 0.4 from 0.04 in DINO, for
    ViTs."""
    decay: Literal["kernels", "all"] = "kernels"
    """What is decayed, and under LARS adapted: `kernels` leaves out biases and the scales and shifts of norm layers, as most official codes
    do; `all` are all parameters, as in those of MoCo v2, SimSiam and SwAV, and of MoCo v3 for ViTs."""
    trust_coefficient: float | None = Field(default=None, gt=0)
    """LARS's trust coefficient, by default 0.001; an error for other optimizers."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate of each block of the encoder as a share of the next one's: 0.75 keeps more of the first weights where a run
    starts from others (`backbone.weights`). With 1 all parts have the same."""

    foreach: Annotated[bool | None, ROUNDING] = None
    """Whether updates are computed for all parameters at once, with few kernels; by default on GPUs, and with LARS everywhere."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> OptimConfig:
        for field, owner in (("beta2", "adamw"), ("trust_coefficient", "lars")):
            if getattr(self, field) is not None and self.name != owner:
                raise ValueError(f"optim.{field} has no effect on {self.name}; it belongs to {owner}")
        if self.warmup_start_lr and not self.warmup_epochs:
            raise ValueError("optim.warmup_start_lr has no effect without a warm-up; set optim.warmup_epochs")
        return self


@dataclass(frozen=True)
class Progress:
    """The numbers that determine steps and epochs of a run."""

    num_rows: int
    global_batch: int
    epochs: float

    @property
    def total_steps(self) -> int:
        """Full batches in `epochs` passes; the incomplete batch at the very end is dropped."""
        return int(self.epochs * self.num_rows / self.global_batch + 1e-9)

    def epoch(self, step: int) -> float:
        return step * self.global_batch / self.num_rows


def micro_batch(config: TrainConfig, world_size: int) -> int:
    """Images that one worker takes at a time.

    Raises:
        UsageError: the global batch does not divide into equal parts.
    """
    parts = world_size * config.accumulate
    if config.global_batch % parts:
        below, above = config.global_batch // parts * parts, -(-config.global_batch // parts) * parts
        near = f"{below} or {above}" if below else str(above)
        raise UsageError(
            f"train.global_batch={config.global_batch} does not divide by {world_size} workers x train.accumulate={config.accumulate}; "
            f"the nearest that do: {near}"
        )
    return config.global_batch // parts


def share_of_batch(config: TrainConfig, num_workers: int, world_size: int) -> tuple[int, int]:
    """(rows per part, number of parts) of each of `world_size` workers' share of the global batch.

    With the config's `num_workers` these are the config's own. With fewer workers there are more parts of the same size, so that memory
    suffices as before; if that does not divide evenly, parts are a little smaller.

    Raises:
        UsageError: the global batch does not divide by the number of workers.
    """
    rows = micro_batch(config, num_workers)
    share = micro_batch(config.model_copy(update={"accumulate": 1}), world_size)
    parts = next(parts for parts in range(-(-share // rows), share + 1) if share % parts == 0)
    return share // parts, parts


def check_shares(config: TrainConfig, worker_counts: range) -> None:
    """Check that the global batch divides evenly for every number of workers.

    Raises:
        UsageError: it does not; the message names the nearest that do.
    """
    num_workers = worker_counts[-1]
    micro_batch(config, num_workers)
    if any(config.global_batch % count for count in worker_counts):
        multiple = math.lcm(*worker_counts, num_workers * config.accumulate)
        below, above = config.global_batch // multiple * multiple, -(-config.global_batch // multiple) * multiple
        raise UsageError(
            f"train.global_batch={config.global_batch} does not divide by every number of workers from "
            f"scaling.min_workers={worker_counts[0]} to "
            f"scaling.num_workers={num_workers}; the nearest that do: {f'{below} or {above}' if below else above}"
        )


def planned_progress(config: TrainConfig, num_rows: int) -> Progress:
    """The progress of a run over so many images.

    Raises:
        UsageError: they make no full batch.
    """
    progress = Progress(num_rows, config.global_batch, config.epochs)
    if progress.total_steps == 0:
        raise UsageError(
            f"train.epochs={config.epochs:g} over {num_rows} images make no full batch of train.global_batch={config.global_batch}; "
            "use a smaller batch or more epochs"
        )
    return progress
