"""LeJEPA: Balestriero and LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics" (arXiv
2511.08544)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ray_sassl.methods.heads import Count, ProjectorConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.gather import all_reduce_with_gradient, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.multi_crop import encode_by_size
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.nn.upload import upload


class Config(ProjectorConfig):
    """LeJEPA.

    Attributes:
        sigreg_weight: Lambda: the loss is lambda * SIGReg + (1 - lambda) * prediction; 0.02 in the official minimal example.
        num_slices: Directions, drawn anew at each step, on which the embeddings are tested (256 in the official minimal example).
        num_frequencies: Points t of the characteristic functions, equally spaced (the official code: 17).
        max_frequency: The largest t (the official code: 3).
        projector_hidden_size: Width of the projector's hidden layers (the official minimal example).
        embedding_size: Width of the embeddings (the default of the official minimal example).
        projector_layers: Linear layers of the projector (the official minimal example).
        bn: "sync" normalizes over the batches of all workers, "plain" over each worker's own; for the networks, since the statistics of the
            loss are always those of the whole batch.
    """

    takes_small_views: ClassVar[bool] = True
    paper_views: ClassVar[str] = "lejepa"

    sigreg_weight: float = Field(default=0.02, gt=0, lt=1)
    num_slices: Count = 256
    num_frequencies: int = Field(default=17, ge=2)
    max_frequency: float = Field(default=3.0, gt=0)
    projector_hidden_size: Count = 2048
    embedding_size: Count = 128
    projector_layers: Count = 3

    def build(self, backbone: nn.Module, num_features: int) -> LeJEPA:
        return LeJEPA(self, backbone, num_features)


class LeJEPA(Method):
    """Each view's embedding predicts the mean of the large views' embeddings, and the embeddings of each view are isotropic Gaussian.

    Differs from the paper: the integral is taken over [0, 3] and doubled, as in the official code, and not over [-5, 5].

    There is no stop-gradient, no teacher and no predictor: what keeps embeddings apart is SIGReg alone. Views of one size pass through the
    backbone as one batch, as in the official code.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features)
        if config.bn == "sync":
            sync_batchnorm.convert(self)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        """As in the contract; the chance loss is that of embeddings that are all zero."""
        config = self.config
        embeddings = self.projector(encode_by_size(self.backbone, views))  # (V * B, D)
        # Every worker draws the same directions, since its generator is in the same state.
        directions = torch.randn(config.embedding_size, config.num_slices, generator=generator)
        with no_autocast(embeddings):
            z = at_least_float32(embeddings).view(len(views), -1, config.embedding_size)
            frequencies = torch.linspace(0, config.max_frequency, config.num_frequencies, dtype=z.dtype)
            points, directions = upload(frequencies, z.device), upload(directions, z.device).to(z.dtype)
            prediction = prediction_loss(z)
            sigreg = torch.stack([sigreg_loss(of_view, directions, points) for of_view in z]).mean()
            loss = config.sigreg_weight * sigreg + (1 - config.sigreg_weight) * prediction
            collapsed = epps_pulley(torch.zeros(1, 1, dtype=z.dtype), frequencies).item() * z.shape[1]
        terms = {"prediction": prediction.detach(), "sigreg": sigreg.detach()}
        return StepOutput(loss, z[0].detach(), config.sigreg_weight * collapsed, terms)


def prediction_loss(z: Tensor, num_large: int = 2) -> Tensor:
    """The mean squared difference of all views' embeddings z (V, B, D) from the mean of the first, large ones."""
    return (z - z[:num_large].mean(0)).square().mean()


def sigreg_loss(z: Tensor, directions: Tensor, points: Tensor) -> Tensor:
    """SIGReg: the mean over directions of the Epps-Pulley statistic of the embeddings along them (the paper's algorithm 1).

    Args:
        z: (B, D) embeddings of this worker; the statistic is that of all workers' rows, equal on all of them.
        directions: (D, M), of any length.
        points: (T,) frequencies as in `epps_pulley`.
    """
    return epps_pulley(z @ (directions / directions.norm(dim=0)), points).mean()


def epps_pulley(x: Tensor, points: Tensor) -> Tensor:
    """The statistic (M,) of Epps and Pulley (1983) that samples x (B, M), by column, come from a standard normal distribution.

    It is N * integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, with phi the characteristic function of the N samples of all workers:
    0 if it is the normal one. The integrand is symmetric, so it is summed over t >= 0 by the trapezoidal rule and doubled, as in the
    official code.

    Args:
        points: (T,) equally spaced t from 0.
    """
    num = len(x) * world_size()
    normal = torch.exp(-points.square() / 2)
    phase = x[:, :, None] * points  # (B, M, T)
    real, imaginary = (all_reduce_with_gradient(part.sum(0)) / num for part in (phase.cos(), phase.sin()))
    weights = 2 * (points[1] - points[0]) * normal
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    return num * ((real - normal).square() + imaginary.square()) @ weights
