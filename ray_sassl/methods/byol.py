"""BYOL: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import Method, MethodConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.ema import cosine_momentum, momentum_copy, update_momentum_copy
from ray_sassl.nn.heads import mlp_head
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.types import StepOutput

CHANCE_LOSS = 4.0
"""Of predictions orthogonal to their targets: 2 - 2 cos = 2 in each of the two directions."""


class Config(MethodConfig):
    """BYOL.

    Attributes:
        base_momentum: Of the target network at the start; it rises to 1 along a cosine (section 3.2: 0.996 for 1,000 epochs; appendix of
            the official code: 0.99 for 300, 0.97 for 100).
        projector_hidden_size: Width of the projector's hidden layer (section 3.2).
        embedding_size: Width of the embeddings and of the predictions (section 3.2).
        projector_layers: Linear layers of the projector (section 3.2).
        predictor_hidden_size: Width of the predictor's hidden layer (section 3.2).
        predictor_layers: Linear layers of the predictor (section 3.2: the projector's architecture).
        bn: "sync" normalises over the batches of all workers (as the official code), "plain" over each worker's own.
    """

    base_momentum: float = Field(default=0.996, ge=0, le=1)
    projector_hidden_size: int = Field(default=4096, ge=1)
    embedding_size: int = Field(default=256, ge=1)
    projector_layers: int = Field(default=2, ge=1)
    predictor_hidden_size: int = Field(default=4096, ge=1)
    predictor_layers: int = Field(default=2, ge=1)
    bn: Literal["sync", "plain"] = "sync"

    def build(self, backbone: nn.Module, num_features: int) -> BYOL:
        return BYOL(self, backbone, num_features)


class BYOL(Method):
    """The online network predicts, from one view, what its slowly moving copy, the target network, makes of the other.

    Each view passes through the networks by itself, so that batch normalisation sees one view at a time, as in the official code. The
    target network keeps its own batch statistics, from its own forward passes.
    """

    momentum: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        size = config.embedding_size
        self.backbone = backbone
        self.projector = mlp_head(num_features, config.projector_hidden_size, size, config.projector_layers, last_bias=False)
        self.predictor = mlp_head(size, config.predictor_hidden_size, size, config.predictor_layers, last_bias=False)
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        self.target_backbone = momentum_copy(self.backbone)
        self.target_projector = momentum_copy(self.projector)
        self.register_buffer("momentum", torch.tensor(config.base_momentum))

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        z1, z2 = (self.projector(self.backbone(view)) for view in views)  # (B, D) each
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.target_projector(self.target_backbone(view)) for view in views)
        with no_autocast(p1):
            loss = byol_loss(p1, t2) + byol_loss(p2, t1)
        similarity = 1 - loss.detach() / 4
        return StepOutput(loss, z1.detach(), CHANCE_LOSS, {"positive_similarity": similarity, "momentum": self.momentum.clone()})

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(self.config.base_momentum, progress)
        update_momentum_copy(self.target_backbone, self.backbone, momentum)
        update_momentum_copy(self.target_projector, self.projector, momentum)
        self.momentum.fill_(momentum)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), both (B, D) of any length, mean over the batch (equation 2)."""
    p, t = F.normalize(at_least_float32(prediction), dim=1), F.normalize(at_least_float32(target), dim=1)
    return (2 - 2 * (p * t).sum(1)).mean()
