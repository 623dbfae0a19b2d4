"""Teaching the student: one step's batch, the loss, and all that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.nn.pixels import to_float
from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.distillation.crops import Crops
from ray_sassl.style.distillation.muon import Muon
from ray_sassl.style.distillation.student import Student, stages
from ray_sassl.style.networks.style_network import StyleTransformer
from ray_sassl.style.stylizers.network_pair import resized

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        contents: (B, 3, S, S) float in [0, 1].
        thumbnails: (2B, 3, 64, 64): of the contents, then of the styles.
        own_codes: (2B, C), the teacher's codes of these.
        alpha: (B, 1), share of the style in the mixtures.
        codes: (B, C), the mixtures.
    """

    contents: Tensor
    thumbnails: Tensor
    own_codes: Tensor
    alpha: Tensor
    codes: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw_batch(crops: Crops, config: DistillConfig, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """This worker's part of a step's batch; it depends on (seed, step, rank) and the crops only."""
    rng = np.random.default_rng([config.seed, step, rank])
    count = max(1, config.batch_size // world_size)
    everything, styles = np.arange(len(crops)), np.flatnonzero(crops.is_style)
    photos = np.flatnonzero(~crops.is_style)
    # Any image may be a style, and a style image may be the content; mostly they are what their names say.
    style = np.where(rng.random(count) < 0.6, rng.choice(styles, count), rng.choice(everything, count))
    content = np.where(rng.random(count) < 0.8, rng.choice(photos, count), rng.choice(everything, count))
    alpha = torch.from_numpy(np.where(rng.random(count) < config.full_strength_share, 1.0, rng.random(count))[:, None]).float()
    both = np.concatenate([content, style])
    own = torch.from_numpy(crops.codes[both])
    contents = resized(to_float(crops.contents[content], _CPU), config.sizes_px[step % len(config.sizes_px)])
    return Batch(contents, to_float(crops.thumbnails[both], _CPU), own, alpha, torch.lerp(own[:count], own[count:], alpha))


def distillation_loss(
    student: Student, teacher: StyleTransformer, batch: Batch, config: DistillConfig, *, with_own_codes: bool, hint_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts.

    - pixels, edges, coarse: mean absolute difference between the pictures, between their gradients, and between their means over 8 x 8
      pixels;
    - effect: squared difference between the scales and shifts that the student's and the teacher's codes give the teacher's instance norms;
    - hints (Romero et al. 2015, arXiv 1412.6550): squared difference between the teacher's feature maps and linear maps of the student's,
      relative to the variances of the teacher's.

    Args:
        with_own_codes: Whether every second picture is stylized with the student's codes.
        hint_weight: Weight of the hints.
    """
    count = len(batch.contents)
    with torch.no_grad():
        wanted, wanted_stages = stages(teacher, batch.contents, batch.codes)
    predicted = student.codes(batch.thumbnails)
    difference = predicted - batch.own_codes
    effect = F.linear(difference, teacher.gamma.weight).square().mean() + F.linear(difference, teacher.beta.weight).square().mean()
    codes = batch.codes
    if with_own_codes:
        own = torch.lerp(predicted[:count], predicted[count:], batch.alpha)
        codes = torch.where((torch.arange(count, device=own.device) % 2 == 0)[:, None], own, codes)
    pictures, found_stages = student.stages(batch.contents, codes)
    pixels = (pictures - wanted).abs().mean()
    edges = (pictures.diff(dim=2) - wanted.diff(dim=2)).abs().mean() + (pictures.diff(dim=3) - wanted.diff(dim=3)).abs().mean()
    coarse = (F.avg_pool2d(pictures, 8) - F.avg_pool2d(wanted, 8)).abs().mean()
    hints = torch.stack([_hint_loss(hint(x), y) for hint, x, y in zip(student.hints, found_stages, wanted_stages, strict=True)]).mean()
    loss = pixels + 0.5 * edges + coarse + config.effect_weight * effect + hint_weight * hints
    parts = {"loss": loss, "pixels": pixels, "edges": edges, "coarse": coarse, "effect": effect, "hints": hints}
    return loss, {name: value.detach() for name, value in parts.items()}


def _hint_loss(x: Tensor, wanted: Tensor) -> Tensor:
    variances = wanted.var(dim=(0, 2, 3), keepdim=True) + 1e-4
    return ((x.float() - wanted).square() / variances).mean()


class Distiller:
    """The student in training; a checkpoint is its `state_dict`.

    Args:
        teacher: The transformer, frozen.
        codes: (N, C), the teacher's codes.
        start: Weights of an earlier student, as `read_student` returns them, to start from; random weights if not given.
    """

    def __init__(
        self,
        teacher: StyleTransformer,
        codes: np.ndarray,
        config: DistillConfig,
        device: torch.device = _CPU,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.teacher = teacher.to(device)
        self.student = Student(codes, teacher)
        if start is not None:
            self.student.start_from(start)
        self.student.to(device)
        self.average = Student(codes, teacher).to(device).requires_grad_(False)
        self.average.load_state_dict(self.student.state_dict())
        matrices, others = [], []
        for weight in self.student.parameters():
            (matrices if weight.ndim > 1 and len(weight) > 3 else others).append(weight)
        muon = Muon(matrices, config.muon_learning_rate, weight_decay=config.weight_decay)
        adam = torch.optim.Adam(others, lr=config.learning_rate, betas=(0.9, 0.99))
        self.optimizers = ((muon, config.muon_learning_rate), (adam, config.learning_rate))
        self.step = 0

    def train_step(
        self, crops: Crops, rank: int = 0, world_size: int = 1, share_gradients: Callable[[nn.Module], object] | None = None
    ) -> dict[str, Tensor]:
        """One optimizer step; returns the loss and its parts.

        Args:
            share_gradients: Averages the gradients over the workers, if there are several.
        """
        config, rate = self.config, schedule(self.step, self.config)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        batch = draw_batch(crops, config, self.step, rank, world_size).to(self.device)
        with_own_codes = self.step >= config.own_codes_from * config.steps
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss, parts = distillation_loss(
                self.student, self.teacher, batch, config, with_own_codes=with_own_codes, hint_weight=rate * config.hint_weight
            )
        self.student.zero_grad(set_to_none=True)
        loss.backward()
        if share_gradients is not None:
            share_gradients(self.student)
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(config.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        for (optimizer, _), held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        self.step = state["step"]


def schedule(step: int, config: DistillConfig) -> float:
    """The learning rate as a share of its peak: a linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)))
