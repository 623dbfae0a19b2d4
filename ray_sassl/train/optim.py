"""Optimizers over a method's trainable parameters: SGD, LARS (You et al. 2017, arXiv 1708.03888) and AdamW."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from ray_sassl.backbones.parts import layer_scales
from ray_sassl.methods import Method
from ray_sassl.plugins import FrozenConfig


class OptimConfig(FrozenConfig):
    """The optimizer and its learning rate. Biases and the scales and shifts of norm layers get no weight decay and no LARS adaptation."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    base_lr: float = Field(default=0.03, gt=0)
    """Peak learning rate before scaling; see `lr_scaling`. 0.03 for a batch of 256 is MoCo's."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the peak follows the global batch: `linear` base_lr * batch / 256, `sqrt` base_lr * sqrt(batch), `none` base_lr."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Length of the linear warm-up, in epochs."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD and LARS; the first beta of AdamW."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """The second beta of AdamW, by default 0.999; an error for other optimizers."""
    weight_decay: float = Field(default=1e-4, ge=0)
    trust_coefficient: float | None = Field(default=None, gt=0)
    """LARS's trust coefficient, by default 0.001; an error for other optimizers."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate of each block of the encoder as a share of the next one's: 0.75 keeps more of the first weights where a run
    starts from others (`backbone.weights`). With 1 all parts have the same."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> OptimConfig:
        for field, owner in (("beta2", "adamw"), ("trust_coefficient", "lars")):
            if getattr(self, field) is not None and self.name != owner:
                raise ValueError(f"optim.{field} has no effect on {self.name}; it belongs to {owner}")
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
    """The optimizer; its learning rate is set by the loop before every update."""
    groups = parameter_groups(module, config.weight_decay, config.layer_decay)
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.base_lr, momentum=config.momentum)
        case "lars":
            from timm.optim import Lars  # slow to import, and most runs do not need it

            for group in groups[::2]:
                group["always_adapt"] = True  # timm adapts only groups with weight decay, so a weight decay of 0 would switch LARS off
            return Lars(groups, lr=config.base_lr, momentum=cast(int, config.momentum), trust_coeff=config.trust_coefficient or 0.001)
        case "adamw":
            beta2 = 0.999 if config.beta2 is None else config.beta2
            return torch.optim.AdamW(groups, lr=config.base_lr, betas=(config.momentum, beta2))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the optimizer's state. Decay and momentum stay the config's, since population based training changes them between
    checkpoints."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
