"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): momentum whose updates are orthogonalized.

In short trials the student got as far in 800 steps with it as in about 4,000 with AdamW. `torch.optim.Muon` takes matrices only; this one
takes convolutions too, as matrices of (out, in * height * width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic iteration, from the authors."""


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions.

    Args:
        lr: Step size; the singular values of an update are about 1, times sqrt(max(1, rows / columns)).
        momentum: Decay of the gradient's moving average; the update is Nesterov's.
        weight_decay: Decoupled weight decay.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean: Tensor = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalized(weight.grad.lerp(mean, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(weight), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix of the same singular vectors whose singular values are between about 0.7 and 1.2, by Newton and Schulz's iteration."""
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
