"""Batch normalization over the batches of all workers, on GPUs and on CPUs.

PyTorch's own SyncBatchNorm refuses CPU tensors, and DistributedDataParallel refuses it in a network on the CPU; this one uses PyTorch's
kernels on GPUs and does the same by itself elsewhere. The result equals batch normalization of the whole batch in one process. With one
worker it is plain batch normalization.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as CudaFunction
from torch.nn.modules.batchnorm import _BatchNorm

from ray_sassl.nn.gather import all_gather, world_size
from ray_sassl.nn.split_batchnorm import SplitBatchNorm2d
from ray_sassl.process.errors import UsageError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert(module: ModuleT) -> ModuleT:
    """Convert every plain batch normalization of the module, in place, to a synchronized one; parameters and buffers stay the same tensors.

    Split batch normalization is left as it is, since its groups are intended.

    Raises:
        UsageError: the module has another kind of batch normalization.
    """
    if isinstance(module, SyncBatchNorm | nn.SyncBatchNorm | SplitBatchNorm2d):
        return module
    if isinstance(module, _BatchNorm):
        return cast(ModuleT, SyncBatchNorm.of(module))
    for name, child in module.named_children():
        setattr(module, name, convert(child))
    return module


class SyncBatchNorm(_BatchNorm):
    """Batch normalization of (B, C, ...) over all workers; it keeps the activation that timm builds into its layers.

    Attributes:
        after: Applied to the normalized values.
    """

    after: nn.Module

    @classmethod
    def of(cls, bn: _BatchNorm) -> SyncBatchNorm:
        """A synchronized layer with the parameters, buffers and settings of a plain one."""
        if type(bn) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and not _has_activation(bn):
            raise UsageError(f"batch normalization of the kind {type(bn).__name__} cannot be synchronized over workers")
        layer = cls(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats)
        layer.weight, layer.bias = bn.weight, bn.bias  # a frozen layer stays frozen
        layer.running_mean, layer.running_var, layer.num_batches_tracked = bn.running_mean, bn.running_var, bn.num_batches_tracked
        layer.after = nn.Sequential(bn.get_submodule("drop"), bn.get_submodule("act")) if _has_activation(bn) else nn.Identity()
        return layer.train(bn.training)

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return self.after(super().forward(input))
        return self.after(self._forward_on_gpu(input) if input.is_cuda else self._forward_on_cpu(input))

    def _forward_on_gpu(self, x: Tensor) -> Tensor:
        share = self._count_batch()
        statistics = self.running_mean, self.running_var
        return CudaFunction.apply(x, self.weight, self.bias, *statistics, self.eps, share, dist.group.WORLD, world_size())

    def _forward_on_cpu(self, x: Tensor) -> Tensor:
        y, mean, var, count = _CpuFunction.apply(x, self.weight, self.bias, self.eps)  # pyright: ignore[reportGeneralTypeIssues]
        share = self._count_batch()
        if self.running_mean is not None and self.running_var is not None:
            unbiased_var = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), share)
        return y

    def _count_batch(self) -> float:
        """This batch's share of the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 1.0 / float(self.num_batches_tracked) if self.num_batches_tracked is not None else 0.0

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions after the channels is right."""


class _CpuFunction(torch.autograd.Function):
    """Normalizes (B, C, ...) by the mean and variance of all workers' values; the moments come out too, without gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, var, count = _global_moments(x)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        rstd = (var + ctx.eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        # With the moments held constant dx = scale dy; the sums over this worker's values are the gradients of weight and bias.
        grad_x, sum_grad_xhat, sum_grad = torch.ops.aten.native_batch_norm_backward(
            grad_outputs[0],
            x,
            torch.ones_like(mean) if weight is None else weight,
            mean,
            var,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        # dx = scale (dy - E[dy] - xhat E[dy xhat]) with xhat = rstd (x - mean), both expectations over the values of all workers
        sums = torch.stack([sum_grad, sum_grad_xhat])
        dist.all_reduce(sums)
        mean_grad, mean_grad_xhat = sums / count
        slope = scale * rstd * mean_grad_xhat
        offset = scale * mean_grad - slope * mean
        grad_x.addcmul_(x, _by_channel(slope, x), value=-1).sub_(_by_channel(offset, x))
        return grad_x, None if weight is None else sum_grad_xhat, None if weight is None else sum_grad, None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values a channel (scalar) over all workers, merged from each worker's own."""
    # Ten times as fast as torch.var_mean in channels_last layout; the idle running statistics ask for moments in their own precision.
    idle = torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    mean, var = torch.batch_norm_update_stats(x, idle, idle.clone(), 0.0)
    count = mean.new_full((len(mean),), x.numel() // x.shape[1])
    means, variances, counts = all_gather(torch.stack([mean, var, count])[None]).unbind(1)
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, total[0]


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(1, -1, *[1] * (like.dim() - 2))


def _has_activation(bn: _BatchNorm) -> bool:
    """Whether it is timm's BatchNormAct2d; timm itself is slow to import."""
    return type(bn).__name__ == "BatchNormAct2d" and type(bn).__module__.startswith("timm.")
