"""Stylized copies of images and the codes of styles, as plain functions: the work of one `ray-sassl stylize` actor on its rows.

Images keep their own sizes here. Every choice is keyed by (seed, copy, sample id), so it does not matter which actor gets which rows; the
in-batch style of an image comes from the same block of up to `BLOCK_ROWS` rows of its shard.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ray_sassl.data import Rows
from ray_sassl.data.decode import decode, decode_rows, image_format
from ray_sassl.data.index import Index
from ray_sassl.data.inspect import sample_rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.nn.chunks import Chunks, Result, is_out_of_memory
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.plugins import FrozenConfig, plugin_field
from ray_sassl.process.errors import UsageError
from ray_sassl.process.version import __version__
from ray_sassl.style.augment import BlockStyles, draw_styles
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers import Stylizer, StylizerConfig
from ray_sassl.views.keyed import DrawKey

BLOCK_ROWS = 256
"""The maximum number of rows that take their styles from each other."""
_PIXELS_AT_ONCE = 32 * 256 * 256
_KEPT_BYTES = 2**28
"""Decoded images of a block that are kept until they are stylized; of a block of larger photographs, the others are decoded again."""


class StyleJobConfig(FrozenConfig):
    """How every image of a data set is stylized."""

    stylize: plugin_field("ray_sassl.style.stylizers", StylizerConfig) = "color_statistics"  # type: ignore[valid-type]
    """The stylizer."""
    sassl: SasslConfig = SasslConfig(prob=1.0, alpha=(1.0, 1.0), beta=(1.0, 1.0))
    """Strength and source of styles; by default, every image is stylized at full strength in the style of another one."""
    seed: int = Field(default=0, ge=0)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Quality of stylized images whose originals are JPEG or lossy WebP."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.stylize.is_identity:
            raise ValueError("stylize=identity changes nothing; choose another stylizer")
        if self.sassl.views != "left":
            raise ValueError("sassl.views is for pretraining: the images of a data set are not views; leave it out")
        return self


@dataclass
class DatasetStylizer:
    """A stylizer with everything that it needs to change rows, in one process.

    Attributes:
        config: How images are stylized.
        stylizer: The config's stylizer.
        device: Where the stylizer computes.
        bank: The config's bank.
        num_threads: Threads for decoding and encoding.
        notes: Messages for the user that do not stop the work; callers remove those that they have shown.
    """

    config: StyleJobConfig
    stylizer: Stylizer
    device: torch.device
    bank: StyleBank | None
    num_threads: int
    notes: list[str] = field(default_factory=list)
    _embed_chunks: Chunks = field(default_factory=Chunks)
    _pixels_at_once: int = _PIXELS_AT_ONCE

    @classmethod
    def build(cls, config: StyleJobConfig, device: torch.device, num_threads: int) -> DatasetStylizer:
        """Load the stylizer and the bank, and set the number of threads that torch uses."""
        torch.set_num_threads(max(1, num_threads))
        stylizer = config.stylize.build(device)
        return cls(config, stylizer, device, config.sassl.load_bank(stylizer.bundle_id), max(1, num_threads))

    def codes(self, rows: Rows, max_pixels: int) -> tuple[np.ndarray, list[str], list[BadRow]]:
        """Style codes (n, C) float32 of the images that can be decoded, their keys, and the rows that cannot be decoded."""
        parts: list[np.ndarray] = [np.empty((0, self.stylizer.code_size), np.float32)]
        keys: list[str] = []
        lost: list[BadRow] = []
        with ThreadPoolExecutor(self.num_threads) as pool:
            for part in _blocks(rows):
                usable, images, bad = _usable(part, max_pixels, 1, self.stylizer.style_px, pool, kept_bytes=0)
                parts.append(self._embedded([image.square for image in images]).cpu().numpy())
                keys += usable.key
                lost += bad
        return np.concatenate(parts), keys, lost

    def stylize(self, rows: Rows, copy: int, max_pixels: int) -> tuple[Rows, list[BadRow]]:
        """The rows with their images stylized, in the format of the originals, and the rows that cannot be used.

        Images are decoded once as far as a block's pixels fit into `_KEPT_BYTES`: the styles of all come first.

        Args:
            copy: Number of the copy, which is the epoch in the keys of the draws.
        """
        done: list[Rows] = []
        lost: list[BadRow] = []
        with ThreadPoolExecutor(self.num_threads) as pool:
            for part in _blocks(rows):
                usable, images, bad = _usable(part, max_pixels, self.stylizer.min_px, self.stylizer.style_px, pool, _KEPT_BYTES)
                encoded = self._stylize_block(usable, images, copy, max_pixels, pool)
                whole = replace(usable, encoded=encoded)
                done.append(whole.take(whole.sample_id[[not isinstance(content, BadRow) for content in encoded]]))
                lost += bad + [content for content in encoded if isinstance(content, BadRow)]
        return Rows.joined(done), lost

    def _stylize_block(
        self, rows: Rows, images: list[_Image], copy: int, max_pixels: int, pool: ThreadPoolExecutor
    ) -> list[bytes | BadRow]:
        """The file content of each image of a block, or the reason why there is none."""
        if not images:
            return []
        params = draw_styles(self.config.sassl, DrawKey(self.config.seed, copy, rows.sample_id), self.bank)
        if params.code is None and len(images) == 1 and params.apply[0]:
            self.notes.append(f"{rows.key[0]} was stylized in its own style: its block has no other image to take a style from")
        styles = BlockStyles.of(
            params, lambda chosen: self._embedded([images[number].square for number in chosen]), self.stylizer.code_size, self.device
        )
        contents = list(rows.encoded)
        for size in sorted({image.size for image in images}):
            of_size = [image.size == size for image in images]
            for number, content in self._stylized(rows, images, np.flatnonzero(params.apply & of_size), styles, max_pixels, pool):
                contents[number] = content
        return contents

    @torch.inference_mode()
    def _stylized(
        self, rows: Rows, images: list[_Image], chosen: np.ndarray, styles: BlockStyles, max_pixels: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, bytes | BadRow]]:
        """The file content of the chosen images, all of one size, stylized; or that one does not fit into memory by itself."""
        if not len(chosen):
            return
        height, width = images[chosen[0]].size

        def pixels(row: int) -> np.ndarray:
            if (kept := images[row].pixels) is not None:
                return kept
            original = rows.encoded[row]
            assert isinstance(original, bytes)
            return np.asarray(decode(original, max_pixels))

        def content(row: int, array: np.ndarray) -> bytes:
            original = rows.encoded[row]
            assert isinstance(original, bytes)
            return encode(array, original, self.config.jpeg_quality)

        def stylize(some: np.ndarray) -> list[bytes | BadRow]:
            try:
                content_images = to_float(np.stack(list(pool.map(pixels, some.tolist()))), self.device)
                arrays = to_uint8(styles.blend(self.stylizer, content_images, some))
            except (MemoryError, RuntimeError) as error:
                if len(some) > 1 or not is_out_of_memory(error):
                    raise
                return [rows.bad_row(int(some[0]), f"its {width} x {height} px do not fit into memory, even without other images")]
            return list(pool.map(content, some.tolist(), arrays))

        at_once = max(1, self._pixels_at_once // (height * width))
        chunks = Chunks(at_once)
        results = self._in_chunks(chunks, stylize, chosen, f"images of {width} x {height} px")
        if chunks.size < at_once:
            self._pixels_at_once = chunks.size * height * width
        for some, contents in results:
            yield from zip(some.tolist(), contents, strict=True)

    def _embedded(self, squares: list[np.ndarray]) -> Tensor:
        """Style codes (n, C) float32 of central squares of images, on the device."""
        if not squares:
            return torch.empty((0, self.stylizer.code_size), device=self.device)
        side = self.stylizer.style_px

        def embed(rows: np.ndarray) -> Tensor:
            return self.stylizer.embed(to_float(np.stack([squares[row] for row in rows]), self.device))

        with torch.inference_mode():
            parts = self._in_chunks(self._embed_chunks, embed, np.arange(len(squares)), f"codes from {side} x {side} px")
            return torch.cat([codes for _, codes in parts])

    def _in_chunks(
        self, chunks: Chunks, work: Callable[[np.ndarray], Result], rows: np.ndarray, what: str
    ) -> list[tuple[np.ndarray, Result]]:
        """The result of `Chunks.map`; adds a note if memory did not suffice for the chunks."""
        before = min(chunks.size, len(rows))
        results = chunks.map(work, rows)
        if chunks.size < before:
            self.notes.append(f"{before} {what} did not fit into memory at once; continued with {chunks.size}, and nothing was left out")
        return results


def sample_squares(index: Index, count: int, size_px: int, seed: int) -> tuple[list[np.ndarray], list[str], list[BadRow]]:
    """The central squares (size_px, size_px, 3) uint8 of some images that can be decoded, their names, and the rows that cannot be decoded.

    Raises:
        UsageError: none of the images can be decoded.
    """
    rows = sample_rows(index, count, seed)
    found = decode_rows(rows, index.config.max_pixels, lambda image: square(image, size_px))
    bad = [row for row in found if isinstance(row, BadRow)]
    if len(bad) == len(found):
        reasons = "\n".join(f"  {row}" for row in bad[:5])
        raise UsageError(f"none of {len(found)} images could be decoded; `ray-sassl data check` lists what is wrong:\n{reasons}")
    good = [(storage.name_of(key), pixels) for key, pixels in zip(rows.key, found, strict=True) if not isinstance(pixels, BadRow)]
    return [pixels for _, pixels in good], [name for name, _ in good], bad


def square(image: Image.Image, size_px: int) -> np.ndarray:
    """(size_px, size_px, 3) uint8: the central square of the image."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def encode(pixels: np.ndarray, original: bytes, quality: int) -> bytes:
    """The file content of (H, W, 3) uint8 pixels in the format of another file; a PNG or lossless WebP stays lossless.

    Args:
        quality: Quality of a JPEG, whose chroma is not subsampled, or of a lossy WebP.
    """
    format_ = image_format(original)
    lossless = original[12:16] == b"VP8L"
    options = {"JPEG": {"quality": quality, "subsampling": 0}, "WEBP": {"quality": quality, "lossless": lossless}, "PNG": {}}[format_]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


def check_job(config: StyleJobConfig) -> str:
    """Build the stylizer and read the bank once, before anything else is started; returns the code space.

    Raises:
        MissingWeightsError, BadWeightsError: the weights of the stylizer are missing or damaged.
        BadBankError: the bank is missing or damaged, or belongs to another stylizer.
    """
    stylizer = config.stylize.build(torch.device("cpu"))
    config.sassl.load_bank(stylizer.bundle_id)
    return stylizer.bundle_id


def change_of(config: StyleJobConfig, copy: int, code_space: str) -> dict[str, Any]:
    """What is done to the images: two copies with equal entries have equal images. Bank and weights are compared by content."""
    tree = config.model_dump(mode="json")
    bank, weights = config.sassl.bank, config.stylize.weights_location()
    sassl = {f"sassl.{name}": value for name, value in tree["sassl"].items() if name != "bank"}
    stylize = {f"stylize.{name}": value for name, value in tree["stylize"].items() if name != "weights"}
    return {
        **stylize,
        **sassl,
        "seed": config.seed,
        "jpeg_quality": config.jpeg_quality,
        "copy": copy,
        "bank_sha256": None if bank is None else _sha256(bank),
        "weights_sha256": None if weights is None else _sha256(weights),
        "code_space": code_space,
        "version": __version__,
    }


def _sha256(path: str) -> str:
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()


def _blocks(rows: Rows) -> Iterator[Rows]:
    """The rows in blocks of nearly equal size, so that every block has many rows to take styles from."""
    count = max(1, -(-len(rows) // BLOCK_ROWS))
    return (rows.take(ids) for ids in np.array_split(rows.sample_id, count))


@dataclass(frozen=True)
class _Image:
    """What is kept of an image.

    Attributes:
        size: Height and width.
        square: (S, S, 3) uint8, its central square.
        pixels: (H, W, 3) uint8, or None where there was no room for them: then it is decoded again.
    """

    size: tuple[int, int]
    square: np.ndarray
    pixels: np.ndarray | None


def _usable(
    rows: Rows, max_pixels: int, min_px: int, square_px: int, pool: ThreadPoolExecutor, kept_bytes: int
) -> tuple[Rows, list[_Image], list[BadRow]]:
    """The rows whose images can be decoded and are large enough, what is kept of these images (pixels: up to `kept_bytes`), and the bad
    rows."""
    parts = [rows.take(ids) for ids in np.array_split(rows.sample_id, max(1, len(rows) // 16))]
    lock, left = Lock(), kept_bytes

    def kept(image: Image.Image) -> _Image:
        nonlocal left
        num_bytes = 3 * image.width * image.height
        with lock:
            has_room = num_bytes <= left
            left -= num_bytes * has_room
        pixels = np.asarray(image) if has_room else None
        return _Image((image.height, image.width), square(image, square_px), pixels)

    found = (image for images in pool.map(lambda part: decode_rows(part, max_pixels, kept), parts) for image in images)
    images: list[_Image] = []
    good: list[int] = []
    bad: list[BadRow] = []
    for place, image in enumerate(found):
        if isinstance(image, BadRow):
            bad.append(image)
        elif min(image.size) < min_px:
            height, width = image.size
            bad.append(rows.bad_row(place, f"{width} x {height} px: the stylizer needs at least {min_px} px per side"))
        else:
            images.append(image)
            good.append(place)
    return rows.take(rows.sample_id[good]), images, bad
