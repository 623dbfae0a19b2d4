"""Optimizers over a method's trainable parameters: SGD, LARS (You et al. 2017, arXiv 1708.03888) and AdamW."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ray_sassl.backbones.parts import layer_scales
from ray_sassl.nn.method import Method
from ray_sassl.plugins import ROUNDING, FrozenConfig
from ray_sassl.train.schedule import Ramp, scaled_lr, warmup_cosine


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


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Trainable parameters in the two groups of `decay_groups`.

    Parameters of a lower rate (`layer_scales`) and those with a constant rate are in pairs of groups of their own after these, marked
    `lr_scale` and `constant_lr`.
    """
    scales: dict[int, float] = {}
    if layer_decay < 1:
        assert isinstance(module, Method)
        scales = {id(module.backbone.get_parameter(name)): scale for name, scale in layer_scales(module.backbone, layer_decay).items()}
    constant = {id(parameter) for parameter in module.constant_lr_parameters()} if isinstance(module, Method) else set()
    parts: dict[tuple[bool, float], list[nn.Parameter]] = {(False, 1.0): []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            parts.setdefault((id(parameter) in constant, scales.get(id(parameter), 1.0)), []).append(parameter)
    groups = []
    for (is_constant, scale), parameters in sorted(parts.items(), key=lambda part: (part[0][0], -part[0][1])):
        marks = ({"constant_lr": True} if is_constant else {}) | ({"lr_scale": scale} if scale != 1 else {})
        groups += [group | marks for group in decay_groups(parameters, weight_decay)]
    return groups


def decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels with weight decay, then biases, scales and shifts (at most one axis) without."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer; `set_rates` sets its learning rate, and its weight decay if that is scheduled, before every update."""
    groups = parameter_groups(module, config.weight_decay, config.layer_decay)
    for group in groups[1::2]:
        if config.decay == "all":
            group["weight_decay"] = config.weight_decay
        if config.bias_lr is not None:
            group["lr_scale"] = group.get("lr_scale", 1.0) * config.bias_lr / config.base_lr
    decayed = groups if config.decay == "all" else groups[::2]
    if config.final_weight_decay is not None:
        for group in decayed:
            group["decay_changes"] = True
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.base_lr, momentum=config.momentum, foreach=config.foreach)
        case "lars":
            from timm.optim import Lars  # slow to import, and most runs do not need it

            for group in decayed:
                group["always_adapt"] = True  # timm adapts only groups with weight decay, so a weight decay of 0 would switch LARS off
            options: dict[str, Any] = {"momentum": config.momentum, "trust_coeff": config.trust_coefficient or 0.001}
            return Lars(groups, lr=config.base_lr, foreach=config.foreach, **options)
        case "adamw":
            beta2 = 0.999 if config.beta2 is None else config.beta2
            return torch.optim.AdamW(groups, lr=config.base_lr, betas=(config.momentum, beta2), foreach=config.foreach)


def set_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, total_steps: int, global_batch: int, num_rows: int
) -> float:
    """Set the learning rates and weight decays of update number `step` (from 0); returns the learning rate of the kernels.

    Args:
        total_steps: Updates of the whole run.
        num_rows: Images of an epoch.
    """
    peak = scaled_lr(config.base_lr, global_batch, config.lr_scaling)
    at = step if config.lr_changes == "step" else math.floor(step * global_batch / num_rows) * num_rows / global_batch
    lr = warmup_cosine(
        at,
        total_steps=total_steps,
        warmup_steps=round(config.warmup_epochs * num_rows / global_batch),
        peak=peak,
        final=config.final_lr,
        start=config.warmup_start_lr,
        ramp=config.warmup_ramp,
    )
    for group in optimizer.param_groups:
        group["lr"] = (peak if group.get("constant_lr") else lr) * group.get("lr_scale", 1.0)
        if group.get("decay_changes"):
            assert config.final_weight_decay is not None
            group["weight_decay"] = warmup_cosine(
                step, total_steps=total_steps, warmup_steps=0, peak=config.weight_decay, final=config.final_weight_decay
            )
    return lr


def clip_gradients(parameters: list[nn.Parameter], norm: float, scope: Literal["whole", "parameter"]) -> None:
    """Scale gradients down to an l2 norm: that of all of them together, or of each parameter's by itself."""
    for clipped in [parameters] if scope == "whole" else [[parameter] for parameter in parameters]:
        nn.utils.clip_grad_norm_(clipped, norm)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimizer's state. Decay and momentum stay the config's, since population based training changes them between
    checkpoints."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
