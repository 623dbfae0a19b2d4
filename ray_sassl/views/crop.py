"""Cuts the views out of decoded images with Pillow's filters and their anti-aliasing, as torchvision does. This module imports no torch.

`fast` computes them in vector instructions (`vectorized.py`), or with Pillow where the package for it has no wheel (Linux on ARM); large
JPEGs are decoded smaller for it. `pillow` computes them with Pillow. Views without anti-aliasing are computed by `point_sampled.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from ray_sassl.views.draw import Box, Interpolation, ViewParams
from ray_sassl.views.point_sampled import PointSampled

Resizing = Literal["fast", "pillow"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_HAS_VECTORIZED = find_spec("cykooz_resizer") is not None
_SHRINKS = (8, 4, 2)
_SHRUNK_OVER_CROP = 2
"""A crop of an image that was scaled down while it was decoded has at least so many times the view's pixels, in each direction: so the
view's own filter still decides what is seen, and colors that a JPEG stores at half its resolution still have the view's."""


class Resize(Protocol):
    """Resizes the box of an image (H, W, 3) uint8 to the view (size_px, size_px, 3) uint8, and mirrors it if asked to."""

    def __call__(self, image: np.ndarray, box: Box, mirrored: bool, view: np.ndarray) -> None: ...


class Crops:
    """One view of B images, which are cut one after the other, so that only one decoded image is held at a time.

    Attributes:
        views: (B, size_px, size_px, 3) uint8; rows that were not cut are undefined.
        shrink: (B,) int64, by how much each image may be scaled down while it is decoded: 1, 2, 4 or 8, and 1 with `pillow`.
    """

    def __init__(
        self,
        params: ViewParams,
        size_px: int,
        interpolation: Interpolation = "bicubic",
        resizing: Resizing = "fast",
        antialias: bool = True,
    ) -> None:
        self.views = np.empty((len(params), size_px, size_px, 3), np.uint8)
        self.shrink = np.ones(len(params), np.int64)
        if resizing == "fast" and antialias:
            spare = np.minimum(params.width, params.height) // (_SHRUNK_OVER_CROP * size_px)
            self.shrink = np.select([spare >= shrink for shrink in _SHRINKS], _SHRINKS, 1)
        rights, bottoms = params.left + params.width, params.top + params.height
        self._boxes = list(zip(params.left.tolist(), params.top.tolist(), rights.tolist(), bottoms.tolist(), strict=True))
        self._mirrored = params.flip.tolist()
        self._resize = _resizer(size_px, interpolation, resizing) if antialias else PointSampled(size_px, interpolation)

    def cut(self, row: int, image: np.ndarray, shrink: int = 1) -> None:
        """Fills in the row's view.

        Args:
            image: (H, W, 3) uint8, the whole image.
            shrink: By how much it was scaled down.
        """
        left, top, right, bottom = (edge / shrink for edge in self._boxes[row])
        outer_left, outer_top = int(left), int(top)
        part = image[outer_top : -int(-bottom // 1), outer_left : -int(-right // 1)]
        height, width = part.shape[:2]
        box = left - outer_left, top - outer_top, min(right - outer_left, width), min(bottom - outer_top, height)
        self._resize(part, box, self._mirrored[row], self.views[row])


def crop(
    images: Iterable[np.ndarray],
    params: ViewParams,
    size_px: int,
    interpolation: Interpolation = "bicubic",
    resizing: Resizing = "fast",
    antialias: bool = True,
) -> np.ndarray:
    """The crops (B, size_px, size_px, 3) uint8 of B images (H, W, 3) uint8, each resized and, if drawn, mirrored.

    With `pillow` they equal `torchvision.transforms.functional.resized_crop` on Pillow images.
    """
    crops = Crops(params, size_px, interpolation, resizing, antialias)
    for row, image in enumerate(images):
        crops.cut(row, image)
    return crops.views


def _resizer(size_px: int, interpolation: Interpolation, resizing: Resizing) -> Resize:
    if resizing == "pillow" or not _HAS_VECTORIZED:
        return _Pillow(size_px, interpolation)
    from ray_sassl.views.vectorized import Vectorized  # its package is not there on every machine

    return Vectorized(size_px, interpolation)


class _Pillow:
    """Pillow's own resizing. The box is cut out first, because `resize(box=...)` reads pixels outside the box."""

    def __init__(self, size_px: int, interpolation: Interpolation) -> None:
        self._size, self._filter = (size_px, size_px), _FILTERS[interpolation]

    def __call__(self, image: np.ndarray, box: Box, mirrored: bool, view: np.ndarray) -> None:
        resized = np.asarray(Image.fromarray(image).resize(self._size, self._filter, box))
        view[:] = resized[:, ::-1] if mirrored else resized
