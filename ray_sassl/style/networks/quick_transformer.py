"""The style transformer for inference on a CPU: the results of `StyleTransformer`, with less arithmetic and fewer passes over memory.

Two identities save arithmetic; the rest is memory layout:

- A 3 x 3 convolution after nearest upsampling by two sees each pixel twice, so each of the four output phases (row and column even or odd)
  is a 2 x 2 convolution of the small image whose weights are sums of the nine: 16 multiplications instead of 36. Reflecting the large image
  at its border repeats the border of the small one.
- The last convolution has 3 output channels, which leave most lanes of a vector unit unused. It is computed for 2 x 2 pixels at once, as 12
  channels, on an image whose pairs of columns are read as channels; in channels_last this is the same memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.style.networks.fused import convolution, convolved
from ray_sassl.style.networks.style_network import EPSILON, StyleTransformer

_TAPS = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
"""(phase, tap of the small image, tap of the large image): which of three neighbors of the upsampled image lie in which pixel."""
_SPARE = 4
"""Channels of zeros that fill the last convolution's 12 up to 16."""


class QuickTransformer(nn.Module):
    """Stylizes as the given transformer does, to within about 1e-5; it has no gradients.

    Args:
        network: The transformer whose weights are used; later changes to them have no effect.
    """

    def __init__(self, network: StyleTransformer) -> None:
        super().__init__()
        self._network = network
        *growing, last = [conv.weight.detach() for conv in network.expand if isinstance(conv, nn.Conv2d)]
        self._phases = [_phase_weights(weight) for weight in growing]
        self._blocks = _block_weights(last)

    @torch.inference_mode()
    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        """(B, 3, H, W) stylized images in [0, 1], of (B, 3, H, W) contents, H and W multiples of 4, and (B, C) codes."""
        network = self._network
        gammas = network.gamma(codes).split(network.norm_widths, dim=1)  # (B, width) each
        betas = network.beta(codes).split(network.norm_widths, dim=1)
        *norms, last_norm = zip(gammas, betas, strict=True)
        norms = iter(norms)
        x = images.contiguous(memory_format=torch.channels_last)
        for conv in network.contract:
            assert isinstance(conv, nn.Conv2d)
            x = convolved(_padded(x, conv.kernel_size[0] // 2), conv, "relu")
        for first, second in zip(network.residual[::2], network.residual[1::2], strict=True):
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            y = norm_(convolved(_padded(x, 1), first), *next(norms)).relu_()
            x = norm_(convolved(_padded(y, 1), second), *next(norms)).add_(x)
        for weight in self._phases:
            x = norm_(_grown(x, weight), *next(norms)).relu_()
        return self._last_layer(x, *last_norm)

    def _last_layer(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """The last layer: (B, 3, H, W) of (B, C, H, W)."""
        y = _padded(x, (self._blocks.shape[2] - 1) // 2)
        batch, channels, height, width = y.shape
        pairs = y.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)
        blocks = convolution(pairs, self._blocks, stride=(2, 1))  # (B, 3 * 4 + spare, H / 2, W / 2)
        blocks = norm_(blocks, *(F.pad(of_channel.repeat_interleave(4, dim=1), (0, _SPARE)) for of_channel in (gamma, beta)), shared=4)
        return F.pixel_shuffle(blocks[:, :-_SPARE], 2).sigmoid_()


def norm_(x: Tensor, gamma: Tensor, beta: Tensor, shared: int = 1) -> Tensor:
    """Conditional instance normalization in place; the same as `style_network.conditional_instance_norm`.

    Args:
        x: (B, C, H, W) float32, channels_last.
        gamma: (B, C), scales.
        beta: (B, C), shifts.
        shared: Number of consecutive channels that share one mean and one variance.
    """
    mean, square = x.mean((2, 3)), x.square().mean((2, 3))
    if shared > 1:
        mean, square = (moment.unflatten(1, (-1, shared)).mean(2).repeat_interleave(shared, dim=1) for moment in (mean, square))
    variance = torch.addcmul(square, mean, mean, value=-1).clamp_(min=0)
    scale = variance.add_(EPSILON).rsqrt_().mul_(gamma)
    shift = torch.addcmul(beta, mean, scale, value=-1)
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None], out=x)


def _padded(x: Tensor, width: int) -> Tensor:
    """`x` (B, C, H, W) with a reflected border."""
    return F.pad(x, (width, width, width, width), mode="reflect")


def _grown(x: Tensor, phase_weights: Tensor) -> Tensor:
    """(B, O, 2H, 2W): nearest upsampling and a 3 x 3 convolution of (B, C, H, W)."""
    batch, _, height, width = x.shape
    channels = len(phase_weights) // 4
    phases = convolution(F.pad(x, (1, 1, 1, 1), mode="replicate"), phase_weights)  # (B, 4 O, H + 1, W + 1)
    grown = torch.empty((batch, channels, 2 * height, 2 * width), memory_format=torch.channels_last)
    for number in range(4):
        row, column = divmod(number, 2)
        phase = phases[:, number * channels : (number + 1) * channels, row : row + height, column : column + width]
        grown[:, :, row::2, column::2] = phase
    return grown


def _phase_weights(weight: Tensor) -> Tensor:
    """(4 O, C, 2, 2) of (O, C, 3, 3): the weights of the four phases, phase by phase."""
    phases = torch.einsum("oiyx,apy,bqx->aboipq", weight, _TAPS, _TAPS)
    return phases.flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _block_weights(weight: Tensor) -> Tensor:
    """(4 O + spare, 2 C, K + 1, (K + 1) / 2) of (O, C, K, K), K odd: output 4 o + 2 row + column, input column * C + c."""
    outputs, channels, kernel, _ = weight.shape
    blocks = weight.new_zeros(outputs, 2, 2, channels, kernel + 1, kernel + 1)
    for row in range(2):
        for column in range(2):
            blocks[:, row, column, :, row : row + kernel, column : column + kernel] = weight
    pairs = blocks.reshape(4 * outputs, channels, kernel + 1, (kernel + 1) // 2, 2).permute(0, 4, 1, 2, 3).flatten(1, 2)
    return torch.cat([pairs, pairs.new_zeros(_SPARE, *pairs.shape[1:])]).contiguous(memory_format=torch.channels_last)
