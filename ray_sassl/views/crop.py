"""Cuts the views out of decoded images with Pillow's resampling, as torchvision does. This module imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ray_sassl.views.draw import ViewParams

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def crop(
    images: Sequence[Image.Image], params: ViewParams, size_px: int, interpolation: Literal["bilinear", "bicubic"] = "bicubic"
) -> np.ndarray:
    """The crops (B, size_px, size_px, 3) uint8 of B images in mode RGB, each resized and, if drawn, mirrored.

    Equal to `torchvision.transforms.functional.resized_crop` on Pillow images. The crop is copied before it is resized, because Pillow's
    `resize(box=...)` reads pixels outside the box.
    """
    views = np.empty((len(images), size_px, size_px, 3), np.uint8)
    rights, bottoms = params.left + params.width, params.top + params.height
    boxes = zip(params.left.tolist(), params.top.tolist(), rights.tolist(), bottoms.tolist(), strict=True)
    for view, image, box, flip in zip(views, images, boxes, params.flip.tolist(), strict=True):
        resized = image.crop(box).resize((size_px, size_px), _FILTERS[interpolation])
        if flip:
            cv2.flip(np.asarray(resized), 1, dst=view)
        else:
            view[:] = np.asarray(resized)
    return views
