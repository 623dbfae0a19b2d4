"""VICReg: Bardes, Ponce and LeCun 2022, "Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (arXiv 2105.04906)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Plain, passes_gradient
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.gather import all_reduce_with_gradient, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast

_EPSILON = 1e-4
"""Added to variances before the root (section 4)."""


class Config(HeadsConfig):
    """VICReg.

    Attributes:
        invariance_weight: Lambda, of the distance of an image's two embeddings (section 4: 25).
        variance_weight: Mu, of the hinge on each dimension's standard deviation (section 4: 25).
        covariance_weight: Nu, of the squared covariances of different dimensions (section 4: 1).
        projector_hidden_size: Width of the expander's hidden layers (section 4).
        embedding_size: Width of the embeddings (section 4).
        projector_layers: Linear layers of the expander (section 4).
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own; for the networks,
            since the variances and covariances of the loss are always those of the whole batch.
        fa: Feature augmentation, which its paper does not try on this objective. Nearest neighbors are refused: they come from a memory of
            unit vectors, and this loss compares lengths.
    """

    paper_views: ClassVar[str] = "byol"
    invariance_weight: float = Field(default=25.0, ge=0)
    variance_weight: float = Field(default=25.0, gt=0)
    covariance_weight: float = Field(default=1.0, ge=0)
    projector_hidden_size: Count = 8192
    embedding_size: Count = 8192
    projector_layers: Count = 3

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=False, needs_predictor=False, trains_targets=True, is_mutual=True)

    @model_validator(mode="after")
    def _features_keep_their_length(self) -> Self:
        if not passes_gradient(self.fa):
            raise ValueError(
                f"fa.augmentation={self.fa.augmentation.name!r} takes features from a memory of unit vectors, and VICReg compares lengths: "
                "each dimension should have a standard deviation of 1; use 'mask', 'noise', 'swap', 'interpolate' or 'extrapolate'"
            )
        return self

    def build(self, backbone: nn.Module, num_features: int) -> VICReg:
        return VICReg(self, backbone, num_features)


class VICReg(Method):
    """The two embeddings of an image should be close, every dimension should vary over images, and dimensions should be uncorrelated.

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
        """As in the contract; the chance loss is that of equal embeddings for all images, which only the variance term penalizes."""
        config = self.config
        z = {view: self.projector(self.backbone(x)) for view, x in enumerate(views)}  # (B, D) each
        pairs = self.branches.pairs(z, z, self.predictor, generator, sample_id)
        with no_autocast(z[0]):
            of_pairs = zip(*(vicreg_terms(at_least_float32(p), at_least_float32(t)) for p, t in pairs), strict=True)
            invariance, variance, covariance = (torch.stack(terms).sum() / len(self.branches.directions) for terms in of_pairs)
            loss = config.invariance_weight * invariance + config.variance_weight * variance + config.covariance_weight * covariance
        terms = {"invariance": invariance.detach(), "variance": variance.detach(), "covariance": covariance.detach()}
        return StepOutput(loss, z[0].detach(), config.variance_weight * (1 - _EPSILON**0.5) * self.branches.num_losses, terms)


def vicreg_terms(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance (equations 5, 1 and 4), scalars, of the embeddings (B, D) of two views.

    The first is this worker's mean over images; the others are computed over the images of all workers, and equal on all of them. As in the
    official code, and unlike the paper's text, the invariance is a mean over dimensions too, and the variance term is the mean of the two
    branches' while the covariance term is their sum.
    """
    cov1, cov2 = _covariance(z1), _covariance(z2)
    variance = (_hinge(cov1) + _hinge(cov2)) / 2
    return F.mse_loss(z1, z2), variance, _redundancy(cov1) + _redundancy(cov2)


def _covariance(z: Tensor) -> Tensor:
    """The covariance (D, D) of the embeddings (B, D) of all workers' images (equation 3).

    Differs from the official code, where each worker gathers all embeddings and computes the whole matrix; here each worker adds its part.
    """
    num_images = len(z) * world_size()
    centered = z - all_reduce_with_gradient(z.sum(0)) / num_images
    return all_reduce_with_gradient(centered.T @ centered) / (num_images - 1)


def _hinge(covariance: Tensor) -> Tensor:
    """How far the standard deviations are below 1, mean over dimensions (equations 1 and 2)."""
    return F.relu(1 - (covariance.diagonal() + _EPSILON).sqrt()).mean()


def _redundancy(covariance: Tensor) -> Tensor:
    """The squares of all entries off the diagonal, summed and divided by the number of dimensions (equation 4)."""
    return (covariance - covariance.diagonal().diag()).square().sum() / len(covariance)
