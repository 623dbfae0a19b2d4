"""Folders of small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int, size: tuple[int, int] = (40, 36), classes: int = 0, first: int = 0) -> Path:
    """A folder of pictures of one color each, all different, in class folders if asked for."""
    for number in range(first, first + count):
        place = folder / f"class {number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        color = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        Image.new("RGB", size, color).save(place / f"{number:04d}.png")
    return folder
