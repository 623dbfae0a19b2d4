"""Barlow Twins: Zbontar, Jing, Misra, LeCun and Deny 2021, "Self-Supervised Learning via Redundancy Reduction" (arXiv 2103.03230)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ray_sassl.methods.branches import Plain
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.gather import all_reduce_with_gradient, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast

_EPSILON = 1e-5
"""Added to variances, as in the official code, where batch normalization without scale and shift standardizes embeddings."""


class Config(HeadsConfig):
    """Barlow Twins.

    Attributes:
        off_diagonal_weight: Lambda, which weighs the redundancy term (section 2.2: 0.005; the official code: 0.0051).
        loss_scale: Factor of the whole loss. The official code once had 0.024, as do other implementations. It matters if the optimizer
            does not adapt to the length of gradients: for SGD, and for biases and norm layers under LARS.
        projector_hidden_size: Width of the projector's hidden layers (section 2.2).
        embedding_size: Width of the embeddings (section 2.2).
        projector_layers: Linear layers of the projector (section 2.2).
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own; for the networks,
            since the loss itself always uses the whole batch.
        fa: Feature augmentation, which its paper does not try on this objective.
    """

    paper_views: ClassVar[str] = "byol"
    off_diagonal_weight: float = Field(default=0.0051, ge=0)
    loss_scale: float = Field(default=1.0, gt=0)
    projector_hidden_size: Count = 8192
    embedding_size: Count = 8192
    projector_layers: Count = 3

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=False, needs_predictor=False, trains_targets=True, is_mutual=True)

    def build(self, backbone: nn.Module, num_features: int) -> BarlowTwins:
        return BarlowTwins(self, backbone, num_features)


class BarlowTwins(Method):
    """Each dimension of the embedding should agree between the two views of an image, and be uncorrelated with the other dimensions.

    Each view passes through the networks by itself, as in the official code.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features, last_bias=False)
        self.branches = config.build_branches()
        self.predictor = config.build_predictor() if config.has_predictor else None
        if config.bn == "sync":
            sync_batchnorm.convert(self)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        """As in the contract; the chance loss is that of equal embeddings for all images, which correlate with nothing: 1 per dimension."""
        z = {view: self.projector(self.backbone(x)) for view, x in enumerate(views)}  # (B, D) each
        pairs = self.branches.pairs(z, z, self.predictor, generator, sample_id)
        with no_autocast(z[0]):
            correlations = [cross_correlation(at_least_float32(p), at_least_float32(t)) for p, t in pairs]  # (D, D) each
            losses = [redundancy_loss(c, self.config.off_diagonal_weight) for c in correlations]
            loss = self.config.loss_scale * torch.stack(losses).sum() / len(self.branches.directions)
        chance_loss = self.config.loss_scale * self.config.embedding_size * self.branches.num_losses
        return StepOutput(loss, z[0].detach(), chance_loss, {"correlation_of_views": correlations[0].detach().diagonal().mean()})


def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal_weight: float) -> Tensor:
    """The loss (equation 1) of the embeddings (B, D) of two views, over the global batch; it is the same on all workers."""
    return redundancy_loss(cross_correlation(z1, z2), off_diagonal_weight)


def redundancy_loss(c: Tensor, off_diagonal_weight: float) -> Tensor:
    """How far the cross-correlation (D, D) is from the identity: a sum of squares, those off the diagonal weighted."""
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + off_diagonal_weight * (c - diagonal.diag()).square().sum()


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """The correlation (D, D) of each dimension of `z1` (B, D) with each of `z2` over the images of all workers (equation 2).

    Differs from the official code, which sums the matrix over workers outside autograd, so that its gradients shrink with the number of
    workers. Here the gradients are those of one process with the whole batch.
    """
    return all_reduce_with_gradient(_standardized(z1).T @ _standardized(z2)) / (len(z1) * world_size())


def _standardized(z: Tensor) -> Tensor:
    """`z` (B, D) with mean 0 and variance 1 of each dimension over the images of all workers."""
    num_images = len(z) * world_size()
    centered = z - all_reduce_with_gradient(z.sum(0)) / num_images
    variance = all_reduce_with_gradient(centered.square().sum(0)) / num_images
    return centered * (variance + _EPSILON).rsqrt()
