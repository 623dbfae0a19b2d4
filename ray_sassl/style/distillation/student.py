"""The student while it is trained, and the transformer's forward pass with the feature maps between its layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.style.networks.style_network import SmallPredictor, StyleTransformer, conditional_instance_norm

_LEAST_VARIANCE = 3e-3
"""Added to the variances of the codes, so that directions in which codes hardly vary are not amplified."""


class Student(nn.Module):
    """Predictor and transformer, initially random; both use whitened codes, and `export` folds the whitening into their weights.

    Args:
        codes: (N, C) float32, the teacher's codes, for their mean and covariance.
        teacher: The teacher's transformer; the student's has the same shape.
    """

    mean: Tensor
    whiten: Tensor
    unwhiten: Tensor

    def __init__(self, codes: np.ndarray, teacher: StyleTransformer) -> None:
        super().__init__()
        self.predictor = SmallPredictor(codes.shape[1])
        self.transformer = _like(teacher)
        self.hints = nn.ModuleList([nn.Conv2d(width, width, 1) for width in _stage_widths(teacher)])
        """For each feature map of `stages`, a linear map to the teacher's."""
        variances, axes = np.linalg.eigh(np.cov(codes.astype(np.float64).T))
        scales = np.sqrt(variances.clip(min=0) + _LEAST_VARIANCE)
        self.register_buffer("mean", torch.from_numpy(codes.mean(axis=0)))
        self.register_buffer("whiten", torch.from_numpy(axes / scales).float())
        self.register_buffer("unwhiten", torch.from_numpy((axes * scales).T.copy()).float())
        with torch.no_grad():  # initially every instance norm is a plain one
            for head, value in ((self.transformer.gamma, 1.0), (self.transformer.beta, 0.0)):
                head.weight.mul_(0.2)
                head.bias.fill_(value)

    def codes(self, thumbnails: Tensor) -> Tensor:
        """The codes (B, C) of (B, 3, 64, 64) images, in the teacher's code space."""
        return self.predictor(thumbnails).float() @ self.unwhiten + self.mean

    def stages(self, images: Tensor, codes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same as the function `stages`, for codes (B, C) in the teacher's code space."""
        return stages(self.transformer, images, (codes - self.mean) @ self.whiten)

    @torch.no_grad()
    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights that an earlier student's `export` returned; the linear maps of the hints stay random.

        Raises:
            RuntimeError: the weights are for networks of another shape.
        """
        inner = {name: value.clone() for name, value in state.items()}
        inner["predictor.code.weight"] = self.whiten.T @ state["predictor.code.weight"]
        inner["predictor.code.bias"] = (state["predictor.code.bias"] - self.mean) @ self.whiten
        for name in ("gamma", "beta"):
            weight = state[f"transformer.{name}.weight"]
            inner[f"transformer.{name}.weight"] = weight @ self.unwhiten.T
            inner[f"transformer.{name}.bias"] = state[f"transformer.{name}.bias"] + weight @ self.mean
        for prefix, network in (("predictor.", self.predictor), ("transformer.", self.transformer)):
            network.load_state_dict({name.removeprefix(prefix): value for name, value in inner.items() if name.startswith(prefix)})

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """The state of both networks, under `predictor.` and `transformer.`, for codes in the teacher's code space."""
        state = {f"predictor.{name}": value.clone() for name, value in self.predictor.state_dict().items()}
        state |= {f"transformer.{name}": value.clone() for name, value in self.transformer.state_dict().items()}
        state["predictor.code.weight"] = self.unwhiten.T @ self.predictor.code.weight
        state["predictor.code.bias"] = self.predictor.code.bias @ self.unwhiten + self.mean
        for name in ("gamma", "beta"):
            head = getattr(self.transformer, name)
            state[f"transformer.{name}.weight"] = weight = head.weight @ self.whiten.T
            state[f"transformer.{name}.bias"] = head.bias - weight @ self.mean
        return state


def stages(transformer: StyleTransformer, images: Tensor, codes: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result of the transformer and its feature maps: after the contraction, each residual block and each expansion but the last.

    Nothing is computed in place, so that gradients can flow.
    """
    gammas = transformer.gamma(codes).float().split(transformer.norm_widths, dim=1)
    betas = transformer.beta(codes).float().split(transformer.norm_widths, dim=1)
    norms = iter(zip(gammas, betas, strict=True))
    found: list[Tensor] = []
    x = images
    for conv in transformer.contract:
        x = F.relu(_convolved(x, conv))
    found.append(x)
    for first, second in zip(transformer.residual[::2], transformer.residual[1::2], strict=True):
        y = F.relu(conditional_instance_norm(_convolved(x, first), *next(norms)))
        x = x + conditional_instance_norm(_convolved(y, second), *next(norms))
        found.append(x)
    for conv in transformer.expand[:-1]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = F.relu(conditional_instance_norm(_convolved(x, conv), *next(norms)))
        found.append(x)
    x = conditional_instance_norm(_convolved(x, transformer.expand[-1]), *next(norms))
    return x.float().sigmoid(), found


def _convolved(x: Tensor, conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    pad = conv.kernel_size[0] // 2
    return F.conv2d(F.pad(x, (pad, pad, pad, pad), mode="reflect"), conv.weight, conv.bias, conv.stride)


def _like(teacher: StyleTransformer) -> StyleTransformer:
    """A transformer of the same shape, with random weights."""
    narrow, middle, wide = (len(conv.weight) for conv in teacher.contract)  # pyright: ignore[reportArgumentType]
    return StyleTransformer(teacher.gamma.in_features, (narrow, middle, wide), len(teacher.residual) // 2)


def _stage_widths(transformer: StyleTransformer) -> list[int]:
    """Channels of each feature map of `stages`."""
    contracted, *expanded = [conv.in_channels for conv in transformer.expand if isinstance(conv, nn.Conv2d)]
    return [contracted] * (1 + len(transformer.residual) // 2) + expanded
