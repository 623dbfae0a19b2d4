"""What SimCLR and NNCLR share: one network embeds both views, and the negatives are the other images of the global batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Sides
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast


class Contrast(NamedTuple):
    """A cross-entropy: logits of this worker's anchors (rows) against the candidates of all workers (columns), -inf for a candidate that is
    left out; the column of each row's positive; and how many candidates a row has."""

    logits: Tensor
    positives: Tensor
    num_candidates: int


class InBatchConfig(HeadsConfig, ABC):
    """The fields that the configs share; the configs document them with the sources of their defaults."""

    temperature: float = Field(default=0.1, gt=0)
    projector_hidden_size: Count = 2048
    embedding_size: Count = 128
    projector_layers: Count = 2
    projector_last_bn: bool = True


class InBatchContrast(Method, ABC):
    """Backbone, projector and, if the architecture has one, predictor.

    Both views pass through backbone and projector as one batch, so that batch normalization sees both, as in the official code of SimCLR;
    each passes through the predictor by itself.
    """

    def __init__(self, config: InBatchConfig, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features, last_bn=config.projector_last_bn)
        self.branches = config.build_branches()
        self.predictor = config.build_predictor() if config.has_predictor else None
        if config.bn == "sync":
            sync_batchnorm.convert(self)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        left, right = views
        z1, z2 = self.projector(self.backbone(torch.cat([left, right]))).chunk(2)  # (B, D) each
        z = {0: z1, 1: z2}
        samples = self.branches(z, z, self.predictor, generator, sample_id)
        with no_autocast(z1):
            contrasts = [self.contrast(sides) for sides in samples]
            loss = torch.stack([F.cross_entropy(logits, positives) for logits, positives, _ in contrasts]).sum()
        logits, positives, num_candidates = contrasts[0]
        return StepOutput(loss, z1.detach(), len(samples) * math.log(num_candidates), self._metrics(logits.detach(), positives))

    @abstractmethod
    def contrast(self, sides: Sides) -> Contrast:
        """The logits and positives of the cross-entropy loss."""

    def _metrics(self, logits: Tensor, positives: Tensor) -> dict[str, Tensor]:
        similarity = logits.gather(1, positives[:, None]).mean() * self.config.temperature
        top1 = (logits.argmax(1) == positives).float().mean()
        return {"positive_similarity": similarity, "instance_top1": top1}


def unit(x: Tensor) -> Tensor:
    """(B, D) with rows of length 1, in float32 at least."""
    return F.normalize(at_least_float32(x), dim=1)
