"""Optimizers over a method's trainable parameters: SGD, LARS (You et al. 2017, arXiv 1708.03888) and AdamW."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from ray_sassl.backbones.parts import layer_scales
from ray_sassl.nn.method import Method
from ray_sassl.train.config import OptimConfig
from ray_sassl.train.schedule import scaled_lr, warmup_cosine


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
