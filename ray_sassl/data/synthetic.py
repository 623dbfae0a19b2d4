"""An embedded labeled data set made from code: what is shown (content) and how it is painted (style) are independent.

Content is one of ten silhouettes, moved, turned and scaled; it is the label. Style is one of `NUM_PALETTES` pairs of colors, one of the
`TEXTURES`, a light from one side, and noise. Pixels, and an untrained encoder, see the style first: neighbors in pixel space share their
palette and not their shape. An encoder has to be taught that style does not matter, which is what style augmentation is for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache, reduce
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_sassl.files.cache import cache_dir
from ray_sassl.files.own import mark_folder

CLASSES = ("arrow", "bar", "corner", "crescent", "cross", "disc", "heart", "ring", "star", "triangle")
TEXTURES = ("flat", "stripes", "checks", "blobs", "grain", "dots")
NUM_PALETTES = 32
SIZE_PX = 32
NUM_TRAIN, NUM_TEST = 5120, 1024
_SHARD_ROWS, _GROUP_ROWS = 1280, 256
_RENDERED_TOGETHER = 128
_SEED = 20260101
_MADE_AT = 1_767_225_600  # a fixed time of change, so that every machine's index has the same fingerprint

_Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From coordinates x, y of any one shape to the signed distance from the silhouette's edge, negative inside."""


def ensure_synthetic() -> Path:
    """The folder of the data set, with Parquet shards in its subfolders `train` and `test`; it is made on first use, in seconds.

    It lies below `RAY_SASSL_CACHE`, or else below the user's cache folder. Several processes may ask at once.
    """
    return _ensure(cache_dir())


@lru_cache(maxsize=8)
def _ensure(cache: Path) -> Path:
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache / f"synthetic-v1-{version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    mark_folder(str(cache), known=None)
    aside = Path(tempfile.mkdtemp(prefix=".synthetic-", dir=cache))
    try:
        write_split(aside / "train", NUM_TRAIN, split=0)
        write_split(aside / "test", NUM_TEST, split=1)
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_split(folder: Path, num_rows: int, split: int) -> None:
    """Write Parquet shards of PNG files with columns `image`, `label`, `palette` and `texture` to the folder."""
    folder.mkdir(parents=True)
    images, label, palette, texture = make_images(num_rows, split)
    for number, start in enumerate(range(0, num_rows, _SHARD_ROWS)):
        rows = slice(start, start + _SHARD_ROWS)
        table = pa.table(
            {
                "image": pa.array([_png(image) for image in images[rows]], pa.binary()),
                "label": pa.array(label[rows], pa.int32()),
                "palette": pa.array(palette[rows], pa.int32()),
                "texture": pa.array(texture[rows], pa.int32()),
            }
        )
        path = folder / f"{folder.name}-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=_GROUP_ROWS, compression="NONE")
        os.utime(path, (_MADE_AT, _MADE_AT))


def make_images(num_rows: int, split: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8, and (n,) int64 each: label, palette, texture; the same for the same arguments.

    Labels are balanced; palette and texture are drawn independently of them.
    """
    rng = np.random.default_rng([_SEED, split])
    label = rng.permutation(np.arange(num_rows) % len(CLASSES))
    palette = rng.integers(NUM_PALETTES, size=num_rows)
    texture = rng.integers(len(TEXTURES), size=num_rows)
    images = np.empty((num_rows, SIZE_PX, SIZE_PX, 3), np.uint8)
    for start in range(0, num_rows, _RENDERED_TOGETHER):
        rows = slice(start, start + _RENDERED_TOGETHER)
        images[rows] = _render(label[rows], palette[rows], texture[rows], np.random.default_rng([_SEED, split, 1 + start]))
    return images, label, palette, texture


def _render(label: np.ndarray, palette: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images (n, 32, 32, 3) uint8 with these shapes and styles, and everything else drawn from the generator."""
    shape = (len(label), 1, 1, 1)
    inside = _silhouettes(label, rng)[..., None]
    colors = (_palettes()[palette] + rng.normal(0, 0.04, (len(label), 3, 3))).astype(np.float32)
    figure, ground, accent = (colors[:, None, None, part] for part in range(3))
    pattern = _patterns(texture, rng)[..., None]
    ground = ground + _uniform(rng, 0.5, 1.0, shape) * pattern * (accent - ground)
    figure = figure + _uniform(rng, 0, 0.35, shape) * pattern[:, ::-1] * (accent - figure)
    image = ground + inside * (figure - ground)
    image = image * (1 + _light(len(label), rng)[..., None]) + 0.02 * rng.standard_normal(image.shape, dtype=np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float32)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y (1, 32, 32) of the pixels, from -1 to 1."""
    line = ((np.arange(SIZE_PX) + 0.5) / SIZE_PX * 2 - 1).astype(np.float32)
    return np.broadcast_to(line, (1, SIZE_PX, SIZE_PX)), np.broadcast_to(line[:, None], (1, SIZE_PX, SIZE_PX))


def _silhouettes(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of each pixel (n, 32, 32) that the shape covers, at a random place, size and angle."""
    shape = (len(label), 1, 1)
    scale = _uniform(rng, 0.45, 0.7, shape)
    center_x, center_y = _uniform(rng, -1, 1, (2, *shape)) * (0.98 - 0.9 * scale)
    angle = _uniform(rng, -0.4, 0.4, shape)
    grid_x, grid_y = _grid()
    dx, dy = (grid_x - center_x) / scale, (grid_y - center_y) / scale
    x, y = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    distance = np.empty_like(x)
    for number, name in enumerate(CLASSES):
        chosen = label == number
        distance[chosen] = _SHAPES[name](x[chosen], y[chosen])
    return (0.5 - distance * scale * SIZE_PX / 2).clip(0, 1)


def _palettes() -> np.ndarray:
    """(NUM_PALETTES, 3, 3): RGB in [0, 1] of figure, ground and accent; half of the figures are lighter than their ground."""
    rng = np.random.default_rng([_SEED, 2])
    hue = (np.arange(NUM_PALETTES) / NUM_PALETTES + rng.uniform(0, 0.02, NUM_PALETTES)) % 1
    light, dark = rng.uniform(0.68, 0.92, NUM_PALETTES), rng.uniform(0.12, 0.36, NUM_PALETTES)
    is_light = rng.permutation(NUM_PALETTES) % 2 == 0
    figure = _rgb((hue + rng.uniform(0.2, 0.8, NUM_PALETTES)) % 1, rng.uniform(0.3, 0.9, NUM_PALETTES), np.where(is_light, light, dark))
    ground = _rgb(hue, rng.uniform(0.4, 0.95, NUM_PALETTES), np.where(is_light, dark, light))
    accent = _rgb(
        (hue + rng.uniform(-0.15, 0.15, NUM_PALETTES)) % 1,
        rng.uniform(0.3, 0.9, NUM_PALETTES),
        np.where(is_light, dark, light) * 0.5 + 0.25,
    )
    return np.stack([figure, ground, accent], axis=1)


def _rgb(hue: np.ndarray, saturation: np.ndarray, lightness: np.ndarray) -> np.ndarray:
    """(n, 3) RGB of hue, saturation and lightness (n,), all in [0, 1]."""
    k = (np.array([0, 8, 4]) + 12 * hue[:, None]) % 12
    chroma = (saturation * np.minimum(lightness, 1 - lightness))[:, None]
    return lightness[:, None] - chroma * np.clip(np.minimum(k - 3, 9 - k), -1, 1)


def _patterns(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 32, 32) in [0, 1]: each image's texture at a random angle, period and phase."""
    shape = (len(texture), 1, 1)
    angle, period = _uniform(rng, 0, np.pi, shape), _uniform(rng, 0.22, 0.6, shape)
    phase_x, phase_y = _uniform(rng, 0, 2 * np.pi, (2, *shape))
    x, y = _grid()
    u = np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + phase_x)
    v = np.sin(2 * np.pi / period * (np.cos(angle) * y - np.sin(angle) * x) + phase_y)
    coarse = _uniform(rng, -1.5, 1.5, (len(texture), 6, 6)).repeat(SIZE_PX // 4, 1).repeat(SIZE_PX // 4, 2)
    grain = rng.random(u.shape, dtype=np.float32)
    pattern = np.zeros_like(u)
    for number, name in enumerate(TEXTURES):
        chosen = texture == number
        pattern[chosen] = _texture(name, u[chosen], v[chosen], coarse[chosen], grain[chosen])
    return pattern


def _texture(name: str, u: np.ndarray, v: np.ndarray, coarse: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """One kind of texture (n, 32, 32) in [0, 1], from two crossing waves u and v, coarse squares, and noise."""
    match name:
        case "stripes":
            return 0.5 + 0.5 * np.tanh(3 * u)
        case "checks":
            return 0.5 + 0.5 * np.tanh(6 * u * v)
        case "blobs":
            return 0.5 + 0.5 * _smooth(coarse)[:, 8:40, 8:40]
        case "dots":
            return 1 / (1 + np.exp(-8 * (u + v - 0.9)))
        case "grain":
            return grain
        case _:
            return np.zeros_like(u)


def _smooth(images: np.ndarray) -> np.ndarray:
    """The images (n, H, W) under three passes of a box of 5 x 5."""
    for _ in range(3):
        for axis in (1, 2):
            images = reduce(np.add, (np.roll(images, shift, axis) for shift in range(-2, 3))) / 5
    return images


def _light(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 32, 32): relative brightness of a light from a random side."""
    shape = (num_rows, 1, 1)
    angle, strength = _uniform(rng, 0, 2 * np.pi, shape), _uniform(rng, 0, 0.4, shape)
    x, y = _grid()
    return strength * (np.cos(angle) * x + np.sin(angle) * y)


def _polygon(*corners: tuple[float, float]) -> _Distance:
    """The distance from a polygon's edge: the nearest side, with the sign of the crossing number."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full_like(x, np.inf)
        is_inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
            ex, ey = bx - ax, by - ay
            along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clip(0, 1)
            nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
            if ey:
                is_inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) / ey * ex)
        return np.where(is_inside, -1, 1) * np.sqrt(nearest)

    return distance


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.85


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.72) - 0.22


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.45, y))


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(across - 0.28, along - 1)


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) - 0.27, np.abs(y) - 1.1)


def _heart() -> _Distance:
    t = np.linspace(0, 2 * np.pi, 22, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return _polygon(*zip((x / 16).tolist(), (y / 16).tolist(), strict=True))


def _star() -> _Distance:
    t = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.1, 0.42)
    return _polygon(*zip((radius * np.sin(t)).tolist(), (-radius * np.cos(t)).tolist(), strict=True))


_SHAPES: dict[str, _Distance] = {
    "arrow": _polygon((0, -1), (0.8, -0.1), (0.28, -0.1), (0.28, 1), (-0.28, 1), (-0.28, -0.1), (-0.8, -0.1)),
    "bar": _bar,
    "corner": _polygon((-0.8, -0.9), (-0.25, -0.9), (-0.25, 0.35), (0.85, 0.35), (0.85, 0.9), (-0.8, 0.9)),
    "crescent": _crescent,
    "cross": _cross,
    "disc": _disc,
    "heart": _heart(),
    "ring": _ring,
    "star": _star(),
    "triangle": _polygon((0, -1), (0.95, 0.7), (-0.95, 0.7)),
}
