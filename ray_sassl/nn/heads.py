"""Projectors and predictors: small MLPs on top of an encoder.

Weights are drawn by PyTorch's defaults. A linear layer that batch normalization follows has no bias, which would be subtracted again.
"""

from __future__ import annotations

from torch import nn


def mlp_head(
    in_size: int,
    hidden_size: int,
    out_size: int,
    num_layers: int,
    *,
    hidden_bn: bool = True,
    last_bn: bool = False,
    last_bn_affine: bool = True,
    last_bias: bool = True,
) -> nn.Sequential:
    """`num_layers` linear layers, (B, in_size) -> (B, out_size), with ReLU between them.

    Args:
        in_size: Width of the input.
        hidden_size: Width of every layer but the last; unused with one layer.
        out_size: Width of the output.
        num_layers: Linear layers in all, at least one.
        hidden_bn: Batch normalization between each hidden layer and its ReLU.
        last_bn: Batch normalization after the last layer.
        last_bn_affine: A scale and a shift in that batch normalization.
        last_bias: A bias in the last layer if no batch normalization follows it.
    """
    layers: list[nn.Module] = []
    width = in_size
    for _ in range(num_layers - 1):
        layers.append(nn.Linear(width, hidden_size, bias=not hidden_bn))
        if hidden_bn:
            layers.append(nn.BatchNorm1d(hidden_size))
        layers.append(nn.ReLU(inplace=True))
        width = hidden_size
    layers.append(nn.Linear(width, out_size, bias=last_bias and not last_bn))
    if last_bn:
        layers.append(nn.BatchNorm1d(out_size, affine=last_bn_affine))
    return nn.Sequential(*layers)
