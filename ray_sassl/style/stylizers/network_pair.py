"""A stylizer made of two networks, a style predictor and a style transformer, for inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.process.errors import UsageError
from ray_sassl.style.networks.quick_transformer import QuickTransformer
from ray_sassl.style.networks.style_network import StyleTransformer
from ray_sassl.style.stylizers import Stylizer

_STRIDE = 4
"""The transformer halves the image twice."""
_CPU_PIXELS = 1 << 18
"""Pixels that the transformer gets at once on a CPU: few enough for its feature maps to stay in the caches."""
CPU_EMBED_PIXELS = 1 << 17
"""The same for the predictor. With twice as many, the widest feature maps of MobileNetV2 are so large that the C library returns their
memory to the system after each layer, and allocating it again takes 40 % of the time."""


class NetworkPair(Stylizer):
    """Two networks that were trained together.

    Args:
        predictor: Images (B, 3, style_px, style_px) -> codes (B, C).
        transformer: Images (B, 3, H, W) and codes (B, C) -> images, for H and W that are multiples of 4; in float32 on a CPU,
            `QuickTransformer` replaces it.
        style_px: Side to which images are resized for the predictor.
        dtype: Precision of the networks.
    """

    min_px = 32

    def __init__(
        self,
        bundle_id: str,
        code_size: int,
        predictor: nn.Module,
        transformer: StyleTransformer,
        style_px: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.bundle_id, self.code_size = bundle_id, code_size
        self.style_px, self._dtype = style_px, dtype
        self._predictor = _frozen(predictor, device, dtype)
        self._transformer = _frozen(transformer, device, dtype)
        if device.type == "cpu" and dtype == torch.float32:
            self._transformer = QuickTransformer(transformer)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Style codes (B, C) float32 of images (B, 3, H, W), float in [0, 1], of any size."""

        def codes(part: Tensor) -> Tensor:
            part = resized(part, self.style_px).to(self._dtype)
            return self._predictor(part.contiguous(memory_format=torch.channels_last)).float()

        return torch.cat([codes(part) for part in images.split(images_at_once(images, self.style_px**2, CPU_EMBED_PIXELS))])

    @torch.inference_mode()
    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        """The images (B, 3, H, W) stylized according to `codes` (B, C), float32; sides that are not multiples of 4 are padded and cropped.

        Raises:
            UsageError: the images are smaller than 32 px.
        """
        height, width = images.shape[2:]
        if min(height, width) < self.min_px:
            raise UsageError(f"style transfer needs images of at least {self.min_px} px, not {width} x {height}")
        bottom, right = -height % _STRIDE, -width % _STRIDE

        def stylized(part: Tensor, codes: Tensor) -> Tensor:
            padded = F.pad(part, (0, right, 0, bottom), mode="replicate") if bottom or right else part
            return self._transformer(padded.to(self._dtype), codes.to(self._dtype))[:, :, :height, :width].float()

        count = images_at_once(images, height * width)
        return torch.cat([stylized(*parts) for parts in zip(images.split(count), codes.split(count), strict=True)])


def resized(images: Tensor, size_px: int) -> Tensor:
    """(B, 3, size_px, size_px) of (B, 3, H, W), bilinear, anti-aliased if smaller; images that have the size are returned unchanged."""
    if images.shape[2:] == (size_px, size_px):
        return images
    shrinks = max(images.shape[2:]) > size_px
    return F.interpolate(images, (size_px, size_px), mode="bilinear", align_corners=False, antialias=shrinks)


def images_at_once(images: Tensor, num_pixels: int, cpu_pixels: int = _CPU_PIXELS) -> int:
    """How many images with this many pixels a network gets at once."""
    return max(1, cpu_pixels // num_pixels) if images.device.type == "cpu" else len(images) or 1


def _frozen(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return network.eval().requires_grad_(False).to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
