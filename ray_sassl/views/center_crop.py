"""The view of an image that encoders are evaluated on. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ray_sassl.views.draw import Interpolation

CenterCrop = Literal["auto", "center", "shorter_side", "none"]
"""`center`: the shorter side is resized to 8/7 of the size, and the middle is cut out (256 and 224 px: the usual view of ImageNet).
`shorter_side`: it is resized to the size itself, so a square image loses nothing (transfer in Kornblith et al. 2019 and SimCLR's appendix
B.8). `none`: the whole image is resized to a square. `auto`: `none` up to 64 px, else `center`."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_WHOLE_IMAGE_PX = 64


@dataclass(frozen=True)
class EvaluationView:
    """How an image becomes a square of `size_px`; equal to the bit to torchvision's `Resize` and `CenterCrop` on Pillow images."""

    size_px: int
    crop: CenterCrop = "auto"
    interpolation: Interpolation = "bilinear"

    @property
    def shorter_px(self) -> int | None:
        """What the shorter side is resized to; None where the whole image becomes a square."""
        if self.crop == "none" or (self.crop == "auto" and self.size_px <= _WHOLE_IMAGE_PX):
            return None
        return self.size_px if self.crop == "shorter_side" else round(self.size_px * 8 / 7)

    def __str__(self) -> str:
        if self.shorter_px is None:
            return f"resized to {self.size_px} x {self.size_px} px ({self.interpolation})"
        return f"resized to {self.shorter_px} px on the shorter side ({self.interpolation}) and cropped to the middle {self.size_px} px"

    def of(self, image: Image.Image) -> Image.Image:
        """The view of an RGB image."""
        size, shorter_px = self.size_px, self.shorter_px
        if shorter_px is None:
            return image if image.size == (size, size) else image.resize((size, size), _FILTERS[self.interpolation])
        shorter = min(image.size)
        width, height = (shorter_px if side == shorter else int(shorter_px * side / shorter) for side in image.size)
        left, top = (round((side - size) / 2) for side in (width, height))
        return image.resize((width, height), _FILTERS[self.interpolation]).crop((left, top, left + size, top + size))


def as_view(view: EvaluationView | int) -> EvaluationView:
    """The view; a number is the default one of that size."""
    return view if isinstance(view, EvaluationView) else EvaluationView(view)
