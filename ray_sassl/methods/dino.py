"""DINO: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski and Joulin 2021, "Emerging Properties in Self-Supervised Vision Transformers"
(arXiv 2104.14294)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.heads import Count, ProjectorConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.ema import cosine_momentum, momentum_copy, update_momentum_copy
from ray_sassl.nn.gather import all_reduce, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.multi_crop import encode_by_size
from ray_sassl.nn.precision import at_least_float32, no_autocast


class Config(ProjectorConfig):
    """DINO.

    The official code counts the schedules in epochs; here they are shares of the run, which each method receives.

    Attributes:
        student_temperature: Temperature of the student's outputs (section 3.2: 0.1).
        first_teacher_temperature: Temperature of the teacher's outputs at the start (section 3.2: 0.04).
        teacher_temperature: Temperature of the teacher's outputs after the warm-up (section 3.2: 0.07; the official code's default stays at
            0.04).
        teacher_warmup: Share of the run in which the teacher's temperature rises linearly; 30 of 300 epochs (section 3.2).
        base_momentum: Momentum of the teacher at the start; it rises to 1 along a cosine (section 3.1: 0.996).
        center_momentum: Momentum of the center (the official code: 0.9).
        num_outputs: Width of the outputs (section 3.2: 65,536).
        projector_hidden_size: Width of the projector's hidden layers (section 3.1).
        embedding_size: Width of the projector's last layer, whose normalized outputs are the embeddings (the official code: 256).
        projector_layers: Linear layers of the projector before the output layer (section 3.1).
        projector_bn: Batch normalization in the projector, which the paper leaves out (section 3.1).
        norm_last_layer: Keep the weights of each output at length 1; otherwise lengths are trained, which the official code calls better
            but less stable.
        last_layer_frozen: Share of the run, from its start, in which the output layer is not trained. In the official code the first epoch:
            0.01 is one of 100.
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own.
    """

    takes_small_views: ClassVar[bool] = True
    paper_views: ClassVar[str] = "dino"

    student_temperature: float = Field(default=0.1, gt=0)
    first_teacher_temperature: float = Field(default=0.04, gt=0)
    teacher_temperature: float = Field(default=0.07, gt=0)
    teacher_warmup: float = Field(default=0.1, ge=0, le=1)
    base_momentum: float = Field(default=0.996, ge=0, le=1)
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    num_outputs: int = Field(default=65536, ge=2)
    projector_hidden_size: Count = 2048
    embedding_size: Count = 256
    projector_layers: Count = 3
    projector_bn: bool = False
    norm_last_layer: bool = True
    last_layer_frozen: float = Field(default=0.01, ge=0, le=1)

    @property
    def has_head_bn(self) -> bool:
        return self.projector_bn

    def too_few_rows(self, rows: int, num_workers: int) -> str | None:
        # The center remembers earlier batches, so one image has something to differ from.
        return super().too_few_rows(rows, num_workers) if self.has_head_bn else None

    def build(self, backbone: nn.Module, num_features: int) -> DINO:
        return DINO(self, backbone, num_features)

    def teacher_temperature_at(self, progress: float) -> float:
        """The teacher's temperature when a share `progress` of the run is done."""
        share = min(1.0, progress / self.teacher_warmup) if self.teacher_warmup else 1.0
        return self.first_teacher_temperature + share * (self.teacher_temperature - self.first_teacher_temperature)


class DINO(Method):
    """From one view of an image, the student predicts the output of its slowly moving copy, the teacher, for another view.

    The teacher sees the two large views, the student all. Centering prevents the teacher from giving all images one output, its low
    temperature from giving a uniform one. Views of one size pass through the backbone as one batch, as in the official code. The teacher
    keeps its own batch statistics, from its own forward passes.

    Differs from the official code: schedules are shares of the run; what is evaluated and exported is the student by default, and the
    teacher with `evaluate.network=teacher`.
    """

    center: Tensor
    teacher_temperature: Tensor
    momentum: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = Head(config, num_features)
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        self.teacher_backbone = momentum_copy(self.backbone)
        self.teacher_head = momentum_copy(self.head)
        self.register_buffer("center", torch.zeros(config.num_outputs))
        self.register_buffer("teacher_temperature", torch.tensor(config.teacher_temperature_at(0.0)))
        self.register_buffer("momentum", torch.tensor(config.base_momentum))

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        embeddings, student = self.head(encode_by_size(self.backbone, views))  # (V * B, D), (V * B, K)
        with torch.no_grad():
            _, teacher = self.teacher_head(encode_by_size(self.teacher_backbone, views[:2]))  # (2B, K)
        with no_autocast(student):
            outputs, targets = at_least_float32(student).chunk(len(views)), at_least_float32(teacher).chunk(2)
            loss = dino_loss(outputs, targets, self.center, self.config.student_temperature, self.teacher_temperature)
            metrics = self._metrics(targets[0])
            if self.training:
                self._move_center(at_least_float32(teacher))
        return StepOutput(loss, embeddings.chunk(len(views))[0].detach(), math.log(self.config.num_outputs), metrics)

    def student(self) -> tuple[nn.Module, nn.Module]:
        return self.backbone, self.head.projector

    def teacher(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher_backbone, self.teacher_head.projector

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(self.config.base_momentum, progress)
        update_momentum_copy(self.teacher_backbone, self.backbone, momentum)
        update_momentum_copy(self.teacher_head, self.head, momentum)
        self.momentum.fill_(momentum)
        self.teacher_temperature.fill_(self.config.teacher_temperature_at(progress))

    def frozen_parameters(self, progress: float) -> list[nn.Parameter]:
        return self.head.last_layer_parameters() if progress < self.config.last_layer_frozen else []

    @torch.no_grad()
    def _move_center(self, teacher: Tensor) -> None:
        """Move the center toward the mean of the teacher's outputs (2B, K) over all workers (equation 4), after the loss has used the old
        one."""
        mean = all_reduce(teacher.sum(0)) / (len(teacher) * world_size())
        self.center.lerp_(mean, 1 - self.config.center_momentum)

    @torch.no_grad()
    def _metrics(self, target: Tensor) -> dict[str, Tensor]:
        """The entropy of the teacher's outputs (B, K): 0 if it is certain, ln K if its output is uniform."""
        q = F.softmax((target - self.center) / self.teacher_temperature, dim=1)
        entropy = -torch.xlogy(q, q).sum(1).mean()
        return {"teacher_entropy": entropy, "teacher_temperature": self.teacher_temperature.clone(), "momentum": self.momentum.clone()}


class Head(nn.Module):
    """An MLP with GELU, normalization of the embeddings, and a linear layer whose weights are a direction and a length for each output."""

    def __init__(self, config: Config, num_features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = num_features
        for _ in range(config.projector_layers - 1):
            layers.append(nn.Linear(width, config.projector_hidden_size))
            if config.projector_bn:
                layers.append(nn.BatchNorm1d(config.projector_hidden_size))
            layers.append(nn.GELU())
            width = config.projector_hidden_size
        self.projector = nn.Sequential(*layers, nn.Linear(width, config.embedding_size))
        for layer in self.projector:
            if isinstance(layer, nn.Linear):  # as in the official code
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(nn.Linear(config.embedding_size, config.num_outputs, bias=False).weight.detach())
        self.lengths = None if config.norm_last_layer else nn.Parameter(torch.ones(config.num_outputs))

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The directions, and the lengths if they are trained."""
        return [self.directions, *([] if self.lengths is None else [self.lengths])]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, D), of any length, and the outputs (B, K) of features (B, F)."""
        embeddings = self.projector(features)
        outputs = F.normalize(embeddings, dim=1) @ F.normalize(self.directions, dim=1).T
        return embeddings, outputs if self.lengths is None else outputs * self.lengths


def dino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """Cross-entropy of the student's output for each view with the teacher's for every other (equation 3), mean over images and pairs.

    Args:
        student: (B, K) outputs for all views.
        teacher: (B, K) outputs for the first views; gradients do not reach them.
        center: (K,), taken from the teacher's outputs.
        student_temperature: Divides the student's outputs.
        teacher_temperature: Divides the teacher's centered outputs.
    """
    log_p = [F.log_softmax(output / student_temperature, dim=1) for output in student]
    targets = [F.softmax((output.detach() - center) / teacher_temperature, dim=1) for output in teacher]
    pairs = [(q, log_p[view]) for number, q in enumerate(targets) for view in range(len(student)) if view != number]
    return torch.stack([-(q * prediction).sum(1).mean() for q, prediction in pairs]).mean()
