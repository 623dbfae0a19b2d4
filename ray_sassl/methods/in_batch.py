"""Contrast within the batch: what SimCLR and NNCLR have in common. One network makes both views' embeddings; the negatives are the other
images of the global batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import Method, MethodConfig
from ray_sassl.methods.branches import Branches, FaConfig, Plain, Sides, check
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.heads import mlp_head
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.types import StepOutput


class Contrast(NamedTuple):
    """A cross-entropy: logits of this worker's anchors (rows) against the candidates of all workers (columns), -inf where a candidate is left
    out; the column of each row's positive; and how many candidates a row has."""

    logits: Tensor
    positives: Tensor
    num_candidates: int


class InBatchConfig(MethodConfig, ABC):
    """The fields that the configs share; what each is, and where its default comes from, stands there."""

    plain: ClassVar[Plain]

    temperature: float = Field(default=0.1, gt=0)
    projector_hidden_size: int = Field(default=2048, ge=1)
    embedding_size: int = Field(default=128, ge=1)
    projector_layers: int = Field(default=2, ge=1)
    projector_last_bn: bool = True
    predictor_hidden_size: int = Field(default=4096, ge=1)
    predictor_layers: int = Field(default=2, ge=1)
    bn: Literal["sync", "plain"] = "sync"
    fa: FaConfig = FaConfig()

    @model_validator(mode="after")
    def _feature_augmentation_makes_sense(self) -> Self:
        check(self, self.fa, self.plain)
        return self


class InBatchContrast(Method, ABC):
    """Backbone, projector and, where the architecture has one, predictor.

    Both views pass through backbone and projector as one batch, so that batch normalization sees both, as in the official code of SimCLR;
    through the predictor each passes by itself.
    """

    def __init__(self, config: InBatchConfig, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        size = config.embedding_size
        self.backbone = backbone
        self.projector = mlp_head(
            num_features, config.projector_hidden_size, size, config.projector_layers, last_bn=config.projector_last_bn
        )
        self.branches = Branches(config.fa, config.plain, size)
        self.predictor = (
            mlp_head(size, config.predictor_hidden_size, size, config.predictor_layers) if self.branches.has_predictor else None
        )
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
        """What the loss is the cross-entropy of."""

    def _metrics(self, logits: Tensor, positives: Tensor) -> dict[str, Tensor]:
        similarity = logits.gather(1, positives[:, None]).mean() * self.config.temperature
        top1 = (logits.argmax(1) == positives).float().mean()
        return {"positive_similarity": similarity, "instance_top1": top1}


def unit(x: Tensor) -> Tensor:
    """(B, D) with rows of length 1, in float32 at least."""
    return F.normalize(at_least_float32(x), dim=1)
