"""The ResNets for CIFAR of He, Zhang, Ren and Sun 2016 (arXiv 1512.03385), section 4.2: 6n + 2 layers, 16, 32 and 64 channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_RESNETS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""The blocks of each of the three stages (the paper's n), by name."""


def cifar_resnet(name: str, zero_init_residual: bool = False) -> tuple[nn.Module, int]:
    """The encoder of that name without its classifier, (B, 3, 32, 32) -> (B, 64), and 64."""
    return CifarResNet(CIFAR_RESNETS[name], zero_init_residual), 64


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of `blocks_per_stage` basic blocks on maps of full, half and quarter size, global mean."""

    def __init__(self, blocks_per_stage: int, zero_init_residual: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 16, stride=1)
        self.bn1 = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        in_channels = 16
        for channels in (16, 32, 64):
            for block in range(blocks_per_stage):
                stride = 2 if block == 0 and channels > 16 else 1
                blocks.append(BasicBlock(in_channels, channels, stride))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self._draw_weights(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.blocks(x).mean((2, 3))

    def _draw_weights(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015 (arXiv 1502.01852), as the paper says
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut that has no parameters (option A: every other pixel, new channels zero)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual.add_(self._shortcut(x)), inplace=True)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        zeros = x.new_zeros(x.shape[0], self.new_channels, *x.shape[2:]).contiguous(memory_format=torch.channels_last)
        return torch.cat([x, zeros], dim=1)


def _conv3x3(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
