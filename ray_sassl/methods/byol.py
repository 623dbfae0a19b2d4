"""BYOL: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Plain
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.ema import cosine_momentum, momentum_copy, update_momentum_copy
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast

CHANCE_LOSS = 2.0
"""Loss 2 - 2 cos of predictions orthogonal to their targets, in one direction."""


class Config(HeadsConfig):
    """BYOL.

    Attributes:
        base_momentum: Momentum of the target network at the start; it rises to 1 along a cosine (section 3.2: 0.996 for 1,000 epochs;
            presets of the official code: 0.99 for 100 and 300 epochs, 0.97 for 40).
        projector_hidden_size: Width of the projector's hidden layer (section 3.2).
        embedding_size: Width of the embeddings and of the predictions (section 3.2).
        projector_layers: Linear layers of the projector (section 3.2).
        predictor_hidden_size: Width of the predictor's hidden layer (section 3.2).
        predictor_layers: Linear layers of the predictor (section 3.2: the projector's architecture).
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own.
    """

    paper_views: ClassVar[str] = "byol"
    base_momentum: float = Field(default=0.996, ge=0, le=1)
    projector_hidden_size: Count = 4096
    embedding_size: Count = 256
    projector_layers: Count = 2

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=True, needs_predictor=True, trains_targets=False)

    def build(self, backbone: nn.Module, num_features: int) -> BYOL:
        return BYOL(self, backbone, num_features)


class BYOL(Method):
    """From one view, the online network predicts the embedding of the other view by its slowly moving copy, the target network.

    Each view passes through the networks by itself, so that batch normalization sees one view at a time, as in the official code. The
    target network keeps its own batch statistics, from its own forward passes.
    """

    momentum: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features, last_bias=False)
        self.predictor = config.build_predictor(last_bias=False)
        self.branches = config.build_branches()
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        self.target_backbone = momentum_copy(self.backbone)
        self.target_projector = momentum_copy(self.projector)
        self.register_buffer("momentum", torch.tensor(config.base_momentum))

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        left, right = views
        z = {view: self.projector(self.backbone((left, right)[view])) for view in self.branches.prediction_views}  # (B, D) each
        with torch.no_grad():
            t = {view: self.target_projector(self.target_backbone((left, right)[view])) for view in self.branches.target_views}
        pairs = self.branches.pairs(z, t, self.predictor, generator, sample_id)
        with no_autocast(z[0]):
            loss = torch.stack([byol_loss(prediction, target) for prediction, target in pairs]).sum()
        chance_loss = CHANCE_LOSS * len(pairs)
        similarity = 1 - loss.detach() / chance_loss
        return StepOutput(loss, z[0].detach(), chance_loss, {"positive_similarity": similarity, "momentum": self.momentum.clone()})

    def teacher(self) -> tuple[nn.Module, nn.Module]:
        return self.target_backbone, self.target_projector

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(self.config.base_momentum, progress)
        update_momentum_copy(self.target_backbone, self.backbone, momentum)
        update_momentum_copy(self.target_projector, self.projector, momentum)
        self.momentum.fill_(momentum)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), both (B, D) of any length, mean over the batch (equation 2)."""
    p, t = F.normalize(at_least_float32(prediction), dim=1), F.normalize(at_least_float32(target), dim=1)
    return (2 - 2 * (p * t).sum(1)).mean()
