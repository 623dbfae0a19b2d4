"""Style as color statistics: no weights, one linear map of RGB for each image.

Pitie and Kokaram, "The linear Monge-Kantorovitch linear color mapping for example-based color transfer", CVMP 2007. A style code is
the mean and the covariance of an image's RGB values; rendering is the linear map that transports the image's Gaussian to the code's at the
least cost (their equation for T in section 3). Means and covariances mix linearly, so a mixture of codes is again a valid Gaussian.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.style.stylizers import Stylizer, StylizerConfig

_UPPER = torch.triu_indices(3, 3)


class Config(StylizerConfig):
    """Color transfer between Gaussians."""

    regularization: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the variance of every channel of image and style, in squared [0, 1] units (2.6 gray levels of noise at the default), so
    that an image of one color gets a bounded map. This is our choice; the paper has no regularization."""

    def build(self, device: torch.device) -> ColorStatistics:
        return ColorStatistics(self.regularization)


class ColorStatistics(Stylizer):
    """Codes are the mean (3) and the upper triangle of the covariance (6) of RGB in [0, 1]."""

    bundle_id = "color_statistics-v1"
    code_size = 9

    def __init__(self, regularization: float) -> None:
        self._regularization = regularization

    def embed(self, images: Tensor) -> Tensor:
        """Style codes (B, 9) float32 of images (B, 3, H, W), float in [0, 1]."""
        pixels = images.float().flatten(2)
        mean = pixels.mean(dim=2)
        centered = pixels - mean[:, :, None]
        covariance = centered @ centered.mT / pixels.shape[2]
        return torch.cat([mean, covariance[:, _UPPER[0], _UPPER[1]]], dim=1)

    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        """The images (B, 3, H, W) with the color mean and covariance of `codes` (B, 9), clamped to [0, 1]."""
        content_mean, content_covariance = self._gaussian(self.embed(images))
        style_mean, style_covariance = self._gaussian(codes)
        transport = monge_kantorovich(content_covariance, style_covariance)
        shift = style_mean - (transport @ content_mean[:, :, None])[:, :, 0]
        pixels = torch.baddbmm(shift.to(images.dtype)[:, :, None], transport.to(images.dtype), images.flatten(2))
        return pixels.clamp_(0, 1).reshape(images.shape)

    def _gaussian(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, 3) and regularized covariance (B, 3, 3), float64: the map is the ratio of variances that may be tiny."""
        codes = codes.double()
        covariance = codes.new_empty((len(codes), 3, 3))
        covariance[:, _UPPER[0], _UPPER[1]] = codes[:, 3:]
        covariance[:, _UPPER[1], _UPPER[0]] = codes[:, 3:]
        return codes[:, :3], covariance + self._regularization * torch.eye(3, device=codes.device, dtype=codes.dtype)


def monge_kantorovich(content: Tensor, style: Tensor) -> Tensor:
    """The symmetric positive definite T (B, 3, 3) with T content T = style, for positive definite (B, 3, 3) covariances.

    With content = L L' (Cholesky), T = L^-T (L' style L)^1/2 L^-1: the paper's closed form with one matrix root instead of two.
    """
    factor = torch.linalg.cholesky(content)
    variances, axes = torch.linalg.eigh(factor.mT @ style @ factor)
    root = (axes * variances.clamp(min=0).sqrt()[:, None, :]) @ axes.mT
    half = torch.linalg.solve_triangular(factor.mT, root, upper=True)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False)
