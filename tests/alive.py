"""How many decoded images are in memory at once."""

from __future__ import annotations

import threading
import weakref

import pytest
from PIL import Image

from ray_sassl.data import decode as decode_module


class Alive:
    """Counts the images that `decode` returned and that nobody has forgotten yet.

    Attributes:
        most: The largest number at a time.
        total: How many were decoded.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *modules: object) -> None:
        self.most = self.total = self._now = 0
        self._lock = threading.RLock()
        real = decode_module.decode

        def decode(encoded: bytes, max_pixels: int) -> Image.Image:
            image = real(encoded, max_pixels)
            with self._lock:
                self.total += 1
                self._now += 1
                self.most = max(self.most, self._now)
            weakref.finalize(image, self._forget)
            return image

        for module in (decode_module, *modules):
            patch.setattr(module, "decode", decode)

    def _forget(self) -> None:
        with self._lock:
            self._now -= 1
