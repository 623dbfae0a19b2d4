"""Style as the amplitudes of low spatial frequencies: no weights, a Fourier transform there and back.

Yang and Soatto 2020, "FDA: Fourier Domain Adaptation for Semantic Segmentation" (arXiv 2004.05498), equations 2 to 4: an image keeps its
phases and takes the amplitudes of another one in a small window around frequency zero. Codes that are mixed before they are rendered make
it the amplitude mix of Xu, Zhang, Zhang, Wang and Tian 2021, "A Fourier-based Framework for Domain Generalization" (arXiv 2105.11120,
section 3.2). It is the control of style transfer that knows no brush strokes.

Differs from the paper: the window is given in cycles per image, not as a share of the image's side, so that codes of images of any size
can be exchanged.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.style.stylizers import Stylizer, StylizerConfig

_MOST_CYCLES = 7


class Config(StylizerConfig):
    """Exchange of the amplitudes of low frequencies."""

    min_px: ClassVar[int] = 2 * _MOST_CYCLES + 1
    cycles: Annotated[int, Field(ge=0, le=_MOST_CYCLES)] = 2
    """The highest frequency whose amplitude is exchanged, in cycles per side of the image; 0 exchanges mean colors alone. The paper's
    window, 0.01 to 0.09 of the side, is 2 to 20 cycles at 224 px and 0 to 2 at 32 px."""

    def build(self, device: torch.device) -> Fda:
        return Fda(self.cycles)


class Fda(Stylizer):
    """Codes are the amplitudes in the window, of each channel, divided by the number of pixels."""

    min_px = Config.min_px

    def __init__(self, cycles: int) -> None:
        self._rows, self._columns = list(range(-cycles, cycles + 1)), cycles + 1
        self.bundle_id = f"fda-{cycles}-v1"
        self.code_size = 3 * len(self._rows) * self._columns

    def embed(self, images: Tensor) -> Tensor:
        """Style codes (B, C) float32 of images (B, 3, H, W), float in [0, 1], each side at least `min_px`."""
        return self._window(_spectrum(images)).abs().flatten(1)

    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        """The images (B, 3, H, W) with their own phases and the amplitudes `codes` (B, C), clamped to [0, 1]."""
        spectrum = _spectrum(images)
        window = self._window(spectrum)
        amplitudes = codes.float().clamp(min=0).view(window.shape)  # a Gaussian of codes also draws negative ones
        spectrum[:, :, self._rows, : self._columns] = torch.polar(amplitudes, window.angle())
        pixels = torch.fft.irfft2(spectrum, s=images.shape[2:], norm="forward")
        return pixels.clamp_(0, 1).to(images.dtype)

    def _window(self, spectrum: Tensor) -> Tensor:
        """(B, 3, 2 n + 1, n + 1) of the spectrum: n cycles up and down; those to the left mirror those to the right."""
        return spectrum[:, :, self._rows, : self._columns]


def _spectrum(images: Tensor) -> Tensor:
    """(B, 3, H, W // 2 + 1) complex, divided by the number of pixels, so that it is the same for an image at any resolution."""
    return torch.fft.rfft2(images.float(), norm="forward")
