"""A teacher with random weights, a few noisy images, and crops that need no teacher."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index
from ray_sassl.style.distillation.crops import Crops, Teacher
from ray_sassl.style.networks.style_network import StyleTransformer

CODE_SIZE = 5


class MeanColors(nn.Module):
    """Codes that can be told by hand: the mean of each channel, and two constants."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colors = images.mean(dim=(2, 3)) * self.scale
        return torch.cat([colors, torch.ones(len(images), 2)], dim=1)


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(1)
    transformer = StyleTransformer(CODE_SIZE, (4, 4, 8), 1).requires_grad_(False)
    return Teacher(MeanColors(), transformer)


@pytest.fixture
def crops() -> Crops:
    """12 of each kind, of plain colors with some noise; their codes are their mean colors."""
    rng = np.random.default_rng(0)
    colors = rng.uniform(0.2, 0.8, (24, 1, 1, 3))

    def images(size_px: int) -> np.ndarray:
        noisy = colors + rng.normal(0, 0.1, (24, size_px, size_px, 3))
        return (noisy.clip(0, 1) * 255).astype(np.uint8)

    codes = np.concatenate([colors[:, 0, 0], np.ones((24, 2))], axis=1).astype(np.float32)
    return Crops(images(96), images(64), codes, np.arange(24) < 12)


def write_images(path, colors: list[tuple[int, int, int] | None], size_px: int = 80) -> Index:
    """A Parquet file of images of one color each; None is no image."""
    encoded = []
    for color in colors:
        buffer = io.BytesIO()
        if color is not None:
            Image.new("RGB", (size_px, size_px + 10), color).save(buffer, "PNG")
        encoded.append(buffer.getvalue() or b"no image")
    pq.write_table(pa.table({"image": encoded}), path, row_group_size=3)
    return build_index(DataConfig(path=str(path), label_column=None, max_bad_fraction=0.3))
