"""Style augmentation on a device with memory of its own: what waits for what."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_sassl.nn import pixels as pixels_module
from ray_sassl.style import augment
from ray_sassl.style.augment import BlockStyles, StyleAugmentation, draw_styles
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.style.stylizers.color_statistics import Config
from ray_sassl.views import ops
from ray_sassl.views.draw import draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import byol
from tests.train.test_prefetch import META, Constants, Waits

CPU = torch.device("cpu")
STYLIZER = Config().build(CPU)


def _augmentation(stylizer: Stylizer) -> StyleAugmentation:
    return StyleAugmentation(stylizer, SasslConfig(prob=1.0), CPU)


class _Watched(Stylizer):
    """Holds the first thread that renders until the other one has uploaded its images, and counts who computes at once."""

    bundle_id, code_size = STYLIZER.bundle_id, STYLIZER.code_size

    def __init__(self) -> None:
        self.uploads, self.most, self._now = threading.Semaphore(0), 0, 0

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return STYLIZER.embed(images)

    def render(self, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        self._now += 1
        self.most = max(self.most, self._now)
        assert self.uploads.acquire(timeout=60)  # each upload once, so both are there before the first one is done
        self.uploads.release()
        self._now -= 1
        return STYLIZER.render(images, codes)


def test_while_one_block_is_stylized_the_next_is_uploaded_and_not_yet_stylized(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    stylizer = _Watched()
    both = threading.Barrier(2)

    def upload(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
        moved = pixels_module.upload(pixels, device)
        both.wait(60)  # would break if the second block had to wait for the first one
        stylizer.uploads.release()
        return moved

    keys = [DrawKey(0, epoch, np.arange(12)) for epoch in range(2)]
    expected = [_augmentation(STYLIZER).stylize(images, key) for key in keys]
    monkeypatch.setattr(augment, "upload", upload)
    augmentation = _augmentation(stylizer)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda key: augmentation.stylize(images, key), keys))
    assert stylizer.most == 1
    np.testing.assert_array_equal(found, expected)


class _Plain(Stylizer):
    bundle_id, code_size = "plain", 4

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def render(self, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize("source", ["in_batch", "bank"])
def test_codes_blending_and_colors_never_wait_for_the_device(source):
    key = DrawKey(0, 0, np.arange(8))
    styles, params = draw_styles(SasslConfig(prob=0.7), key), draw(byol(16).left, np.full((8, 2), 16), key)
    if source == "bank":
        styles = replace(styles, partner=None, code=np.ones((8, 4), np.float32))
    content = torch.zeros(8, 3, 16, 16, device=META)
    with Waits() as waits, Constants(waits.counts):
        codes = BlockStyles.of(styles, lambda rows: torch.zeros(len(rows), 4, device=META), 4, META)
        ops.color(codes.blend(_Plain(), content, np.arange(8)), params)
    assert not waits.counts
