"""Stylised copies of images and the codes of styles, as plain functions: what `ray-sassl stylize` does to the rows that one actor gets.

Images keep their own sizes here. Every choice is keyed by (seed, copy, sample id), so it does not matter which actor gets which rows; the
in-batch style of an image comes from the same `BLOCK_ROWS` rows of its shard.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from ray_sassl import storage
from ray_sassl.data import Rows
from ray_sassl.data.decode import decode_rows, image_format
from ray_sassl.data.index import Index
from ray_sassl.data.inspect import sample_rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.styles import StyleBank
from ray_sassl.plugins import FrozenConfig, UsageError, plugin_field
from ray_sassl.sassl import Chunks, SasslConfig, blend, draw_styles, to_float, to_uint8
from ray_sassl.stylize import Stylizer, StylizerConfig

BLOCK_ROWS = 256
"""Rows that are decoded, stylised and encoded together."""
STYLE_IMAGE_PX = 256
"""Side of the squares that codes are computed from."""
_PIXELS_AT_ONCE = 32 * 256 * 256


class StyleJobConfig(FrozenConfig):
    """What is done to every image of a data set."""

    stylize: plugin_field("ray_sassl.stylize", StylizerConfig) = "color_statistics"  # type: ignore[valid-type]
    """The stylizer."""
    sassl: SasslConfig = SasslConfig(prob=1.0, alpha=(1.0, 1.0), beta=(1.0, 1.0))
    """Strength and source of styles; by default every image is repainted at full strength in the style of another one."""
    seed: int = Field(default=0, ge=0)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Of repainted images that came as JPEG or lossy WebP."""


@dataclass(frozen=True)
class Restyler:
    """A stylizer with all that it needs to change rows, in one process.

    Attributes:
        config: What is done.
        stylizer: As the config says.
        device: Where it computes.
        bank: The config's.
        num_threads: For decoding and encoding.
    """

    config: StyleJobConfig
    stylizer: Stylizer
    device: torch.device
    bank: StyleBank | None
    num_threads: int

    @classmethod
    def build(cls, config: StyleJobConfig, device: torch.device, num_threads: int) -> Restyler:
        """Load the stylizer and the bank, and give torch its share of the CPU."""
        torch.set_num_threads(max(1, num_threads))
        stylizer = config.stylize.build(device)
        return cls(config, stylizer, device, config.sassl.load_bank(stylizer.bundle_id), max(1, num_threads))

    def codes(self, rows: Rows, max_pixels: int) -> tuple[np.ndarray, list[str], list[BadRow]]:
        """Style codes (n, C) float32 of the images that can be decoded, their names, and the rows that cannot."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            images, good, bad = _decoded(rows, max_pixels, pool)
            squares = np.stack(list(pool.map(square, images))) if images else np.empty((0, 1, 1, 3), np.uint8)
        return self._embedded(squares, Chunks()), [rows.key[place] for place in good], bad

    def repaint(self, rows: Rows, copy: int, max_pixels: int) -> tuple[Rows, list[BadRow]]:
        """The rows with their images repainted, in the format in which they came, and the rows that cannot be used.

        Args:
            copy: Number of the copy, which stands for the epoch in the keys of the draws.
        """
        kept: list[tuple[int, bytes]] = []
        lost: list[BadRow] = []
        with ThreadPoolExecutor(self.num_threads) as pool:
            for first in range(0, len(rows), BLOCK_ROWS):
                part = rows.take(rows.sample_id[first : first + BLOCK_ROWS])
                images, good, bad = _decoded(part, max_pixels, pool)
                small = [place for place, image in zip(good, images, strict=True) if min(image.size) < self.stylizer.min_px]
                lost += bad + [
                    part.bad_row(place, f"smaller than the {self.stylizer.min_px} px that the stylizer needs") for place in small
                ]
                usable = [(place, image) for place, image in zip(good, images, strict=True) if place not in small]
                kept += self._repaint_block(part, usable, copy, first, pool)
        whole = rows.take(rows.sample_id[[place for place, _ in kept]])
        return Rows(whole.sample_id, [encoded for _, encoded in kept], whole.label, whole.key, whole.path, whole.row), lost

    def _repaint_block(
        self, rows: Rows, usable: list[tuple[int, Image.Image]], copy: int, first: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, bytes]]:
        """Place among all rows and file content of each usable image of a block."""
        if not usable:
            return
        places = [place for place, _ in usable]
        images = [np.asarray(image) for _, image in usable]
        params = draw_styles(self.config.sassl, rows.sample_id[places], copy, self.config.seed, 0, self.bank)
        squares = np.stack(list(pool.map(lambda item: square(item[1]), usable)))
        codes = torch.from_numpy(self._embedded(squares, Chunks())).to(self.device)
        styles = codes[torch.from_numpy(params.partner)] if params.code is None else torch.from_numpy(params.code).to(self.device)
        alpha, beta = (torch.from_numpy(values).to(self.device, torch.float32) for values in (params.alpha, params.beta))
        painted: dict[int, np.ndarray] = {}
        for shape in sorted({image.shape for image in images}):
            chosen = np.array([number for number, image in enumerate(images) if image.shape == shape and params.apply[number]], np.int64)

            def paint(numbers: np.ndarray) -> np.ndarray:
                content = to_float(np.stack([images[number] for number in numbers]), self.device)
                at = torch.from_numpy(numbers).to(self.device)
                return to_uint8(blend(self.stylizer, content, codes[at], styles[at], alpha[at], beta[at]))

            with torch.inference_mode():
                for numbers, pixels in Chunks(max(1, _PIXELS_AT_ONCE // (shape[0] * shape[1]))).map(paint, chosen):
                    painted |= dict(zip(numbers.tolist(), pixels, strict=True))

        def encoded(number: int) -> bytes:
            original = rows.encoded[places[number]]
            assert isinstance(original, bytes)
            return original if number not in painted else encode(painted[number], image_format(original), self.config.jpeg_quality)

        yield from zip((first + place for place in places), pool.map(encoded, range(len(places))), strict=True)

    def _embedded(self, squares: np.ndarray, chunks: Chunks) -> np.ndarray:
        if not len(squares):
            return np.empty((0, self.stylizer.code_size), np.float32)
        with torch.inference_mode():
            parts = chunks.map(lambda rows: self.stylizer.embed(to_float(squares[rows], self.device)), np.arange(len(squares)))
            return torch.cat([codes for _, codes in parts]).cpu().numpy()


def sample_squares(index: Index, count: int, size_px: int, seed: int) -> tuple[list[np.ndarray], list[BadRow]]:
    """The middles (size_px, size_px, 3) uint8 of some images that can be decoded, and what is wrong with the others that were tried.

    Raises:
        UsageError: none of those that were tried can be decoded.
    """
    decoded = decode_rows(sample_rows(index, count, seed), index.config.max_pixels)
    bad = [image for image in decoded if isinstance(image, BadRow)]
    if len(bad) == len(decoded):
        raise UsageError(f"none of {len(decoded)} images could be decoded; `ray-sassl data check` lists what is wrong")
    return [square(image, size_px) for image in decoded if not isinstance(image, BadRow)], bad


def square(image: Image.Image, size_px: int = STYLE_IMAGE_PX) -> np.ndarray:
    """(size_px, size_px, 3) uint8: the image's middle."""
    scale = size_px / min(image.size)
    width, height = (max(size_px, round(side * scale)) for side in image.size)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    box = (left, top, left + size_px, top + size_px)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).crop(box))


def encode(pixels: np.ndarray, format_: str, quality: int) -> bytes:
    """The file content of (H, W, 3) uint8 pixels as "JPEG", "PNG" or "WEBP"; chroma is not subsampled."""
    out = io.BytesIO()
    options = {"JPEG": {"quality": quality, "subsampling": 0}, "WEBP": {"quality": quality}, "PNG": {}}[format_]
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


def change_of(config: StyleJobConfig, copy: int) -> str:
    """The config in words, with the bank by its content: two copies of equal words hold equal images."""
    bank = hashlib.sha256(storage.read_bytes(config.sassl.bank)).hexdigest() if config.sassl.bank is not None else None
    return json.dumps({**config.model_dump(mode="json"), "bank_sha256": bank, "copy": copy}, sort_keys=True)


def _decoded(rows: Rows, max_pixels: int, pool: ThreadPoolExecutor) -> tuple[list[Image.Image], list[int], list[BadRow]]:
    """The images that can be decoded, their places among the rows, and what is wrong with the others."""
    parts = [rows.take(ids) for ids in np.array_split(rows.sample_id, max(1, len(rows) // 16))]
    decoded = [image for images in pool.map(lambda part: decode_rows(part, max_pixels), parts) for image in images]
    good = [place for place, image in enumerate(decoded) if not isinstance(image, BadRow)]
    bad = [image for image in decoded if isinstance(image, BadRow)]
    return [image for image in decoded if not isinstance(image, BadRow)], good, bad
