"""The two networks of arbitrary style transfer: Ghiasi, Lee, Kudlur, Dumoulin and Shlens 2017, arXiv 1705.06830.

A predictor describes the style of an image by a code; a transformer stylizes a content image according to a code, through conditional
instance normalization (Dumoulin, Shlens and Kudlur 2017, arXiv 1610.07629, equation 5). Sizes and layers are those of the networks that
Magenta released for mobile devices. Images are RGB in [0, 1] throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.style.networks.fused import Activation, convolved

EPSILON = 1e-5


class StyleTransformer(nn.Module):
    """Stylizes content images in the styles of codes.

    Args:
        code_size: Width C of a code.
        widths: Channels of the three stages that contract; the two that expand have the first two in reverse.
        num_blocks: Residual blocks in between.
    """

    def __init__(self, code_size: int = 100, widths: tuple[int, int, int] = (8, 16, 32), num_blocks: int = 5) -> None:
        super().__init__()
        narrow, middle, wide = widths
        self.contract = nn.ModuleList([nn.Conv2d(3, narrow, 9), nn.Conv2d(narrow, middle, 3, 2), nn.Conv2d(middle, wide, 3, 2)])
        self.residual = nn.ModuleList([nn.Conv2d(wide, wide, 3, bias=False) for _ in range(2 * num_blocks)])
        self.expand = nn.ModuleList(
            [nn.Conv2d(wide, middle, 3, bias=False), nn.Conv2d(middle, narrow, 3, bias=False), nn.Conv2d(narrow, 3, 9, bias=False)]
        )
        self.norm_widths = [wide] * (2 * num_blocks) + [middle, narrow, 3]
        self.gamma = nn.Linear(code_size, sum(self.norm_widths))
        """The scales of all instance norms, concatenated; there is no "1 + gamma"."""
        self.beta = nn.Linear(code_size, sum(self.norm_widths))
        """The shifts of all instance norms, concatenated."""

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        """(B, 3, H, W) stylized images in [0, 1], of (B, 3, H, W) contents, H and W multiples of 4, and (B, C) codes."""
        gammas = self.gamma(codes).split(self.norm_widths, dim=1)  # (B, width) each
        betas = self.beta(codes).split(self.norm_widths, dim=1)
        norms = iter(zip(gammas, betas, strict=True))
        x = images
        for conv in self.contract:
            x = F.relu_(_convolved(x, conv))
        for first, second in zip(self.residual[::2], self.residual[1::2], strict=True):
            y = F.relu_(conditional_instance_norm(_convolved(x, first), *next(norms)))
            x = x + conditional_instance_norm(_convolved(y, second), *next(norms))
        for conv in self.expand[:-1]:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.relu_(conditional_instance_norm(_convolved(x, conv), *next(norms)))
        x = conditional_instance_norm(_convolved(x, self.expand[-1]), *next(norms))
        return x.sigmoid_() if not x.requires_grad else x.sigmoid()


def conditional_instance_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) * gamma + beta, mean and biased variance over H and W of each sample and channel.

    Args:
        x: (B, C, H, W).
        gamma: (B, C), scales.
        beta: (B, C), shifts.
    """
    batch, channels, height, width = x.shape
    one = x.reshape(1, batch * channels, height, width)
    # A batch norm over one sample of B * C channels is an instance norm whose scale and shift differ from sample to sample.
    normed = F.batch_norm(one, None, None, gamma.reshape(-1), beta.reshape(-1), training=True, eps=EPSILON)
    return normed.reshape(x.shape)


def _convolved(x: Tensor, conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    pad = conv.kernel_size[0] // 2
    return conv(F.pad(x, (pad, pad, pad, pad), mode="reflect"))


class MobileNetPredictor(nn.Module):
    """The published predictor: MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) with its batch norms folded into the
    convolutions, a mean over the image and a linear layer."""

    SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    """Expansion, channels, blocks and first stride of each stage."""

    def __init__(self, code_size: int = 100) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, width, count, stride in self.SETTINGS:
            for number in range(count):
                blocks.append(_InvertedResidual(channels, width, expansion, stride if number == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels, 1280, 1)
        self.code = nn.Linear(1280, code_size)

    def forward(self, images: Tensor) -> Tensor:
        """Style codes (B, C) of (B, 3, H, W) images in [0, 1]; trained at 256 px."""
        x = self.blocks(self.stem(images, "relu6"))
        return self.code(convolved(x, self.last, "relu6").mean(dim=(2, 3)))


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = _SameConv(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else convolved(x, self.expand, "relu6")
        y = convolved(self.depthwise(y, "relu6"), self.project)
        return x + y if self.is_residual else y


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and to the bottom."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups)

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        height, width = (self._pad(size, axis) for axis, size in enumerate(x.shape[2:]))
        if height[0] == height[1] and width[0] == width[1]:
            return convolved(x, self, activation, (height[0], width[0]))
        return convolved(F.pad(x, (*width, *height)), self, activation)

    def _pad(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


class SmallPredictor(nn.Module):
    """Our own predictor for small images: six convolutions from 64 px down to 4 px.

    Style is in the statistics of features (Gatys, Ecker and Bethge 2016), so the code is a linear map of the means and standard deviations
    of the colors, an early feature map and the last one.
    """

    WIDTHS = (48, 64, 96, 128, 160)
    STRIDES = (1, 2, 1, 2)

    def __init__(self, code_size: int = 100) -> None:
        super().__init__()
        first, *later = self.WIDTHS
        self.patches = nn.Conv2d(3, first, 4, 4)
        channels = (first, *later)
        self.convs = nn.ModuleList(
            [nn.Conv2d(narrow, wide, 3, stride, 1) for narrow, wide, stride in zip(channels, later, self.STRIDES, strict=False)]
        )
        self.code = nn.Linear(2 * (3 + first + channels[-1]), code_size)

    def forward(self, images: Tensor) -> Tensor:
        """Style codes (B, C) of (B, 3, 64, 64) images in [0, 1]."""
        x = convolved(images - 0.5, self.patches, "relu")
        early = x
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            x = convolved(x, conv, "relu")
        return self.code(torch.cat([_statistics(images), _statistics(early), _statistics(x)], dim=1))


def _statistics(x: Tensor) -> Tensor:
    """(B, 2C): means and standard deviations over H and W of (B, C, H, W), in float32 because the variance is a difference of squares."""
    batch, channels, height, width = x.shape
    # Rows are long vectors here: sums over three channels, pixel by pixel, would leave most of a vector unit idle.
    rows = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels).float()
    mean = rows.mean(dim=1).view(batch, width, channels).mean(dim=1)
    square = rows.square().mean(dim=1).view(batch, width, channels).mean(dim=1)
    variance = torch.addcmul(square, mean, mean, value=-1).clamp(min=0)
    return torch.cat([mean, (variance + EPSILON).sqrt()], dim=1).to(x.dtype)
