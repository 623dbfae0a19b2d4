"""Batch normalization in groups of the batch: what several GPUs with one BN each compute, on one device.

He et al. 2020 (MoCo, arXiv 1911.05722), section 3.3, needs groups that differ between queries and keys; the authors' CIFAR-10 demo forms
them on one GPU in this way.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.process.errors import UsageError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert(module: ModuleT, num_splits: int) -> ModuleT:
    """Convert every 2d batch normalization of the module, in place, to `num_splits` groups; parameters and buffers stay the same.

    Raises:
        UsageError: the module has another kind of batch normalization.
    """
    if isinstance(module, nn.BatchNorm2d):
        return cast(ModuleT, SplitBatchNorm2d.of(module, num_splits))
    for name, child in module.named_children():
        setattr(module, name, convert(child, num_splits))
    return module


class SplitBatchNorm2d(nn.BatchNorm2d):
    """In training, normalizes each of `num_splits` consecutive parts of the batch by itself; running statistics follow their mean."""

    num_splits: int

    @classmethod
    def of(cls, bn: nn.BatchNorm2d, num_splits: int) -> SplitBatchNorm2d:
        """A split layer with the parameters, buffers and settings of a plain one."""
        if type(bn) is not nn.BatchNorm2d:
            raise UsageError(f"batch normalization of the kind {type(bn).__name__} cannot be split into groups")
        layer = cls(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
        layer.num_splits = num_splits
        layer.weight, layer.bias = bn.weight, bn.bias  # a frozen layer stays frozen
        layer.running_mean, layer.running_var, layer.num_batches_tracked = bn.running_mean, bn.running_var, bn.num_batches_tracked
        return layer.train(bn.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if len(input) < self.num_splits:
            raise UsageError(
                f"a batch of {len(input)} images a worker cannot be split into {self.num_splits} groups for batch normalization"
            )
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        means = self.running_mean.repeat(self.num_splits, 1)
        variances = self.running_var.repeat(self.num_splits, 1)
        groups = input.tensor_split(self.num_splits)
        output = torch.cat(
            [
                F.batch_norm(group, mean, var, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps)
                for group, mean, var in zip(groups, means, variances, strict=True)
            ]
        )
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return output
