"""Crops of contents and styles with the teacher's codes. They are computed once: at 256 px, a code costs as much as many training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor, nn

from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import read_groups
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.process.errors import UsageError
from ray_sassl.style.distillation import CONTENT_PX, TEACHER_PX, THUMBNAIL_PX, DistillConfig
from ray_sassl.style.stylizers.network_pair import resized

_AT_ONCE = 32
_STYLIZED_PX = 128
"""Side at which the teacher stylizes style crops."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Augmented crops with the teacher's codes.

    Attributes:
        contents: (N, 96, 96, 3) uint8.
        thumbnails: (N, 64, 64, 3) uint8, the same crops as the student's predictor sees them.
        codes: (N, C) float32, the teacher's, computed at 256 px.
        is_style: (N,) bool, whether the crop is of a style image.
    """

    contents: np.ndarray
    thumbnails: np.ndarray
    codes: np.ndarray
    is_style: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def to_bytes(self) -> bytes:
        """The content of a safetensors file, for `from_bytes`."""
        return save({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Crops:
        """What `to_bytes` gave."""
        return cls(**load(content))

    def take(self, rows: slice) -> Crops:
        """Some of the crops."""
        return Crops(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Crops]) -> Crops:
        """The crops of all parts in order."""
        return cls(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True)
class Teacher:
    """The frozen pair.

    Attributes:
        predictor: (B, 3, 256, 256) -> (B, C).
        transformer: (B, 3, H, W), (B, C) -> (B, 3, H, W).
    """

    predictor: nn.Module
    transformer: nn.Module


def make_crops(
    teacher: Teacher,
    contents: Sequence[Index],
    styles: Sequence[Index],
    config: DistillConfig,
    *,
    excluded: Sequence[str] = (),
    rank: int = 0,
    world_size: int = 1,
    on_bad: Callable[[BadRow], object] = lambda bad: None,
    known: Crops | None = None,
) -> Iterator[Crops]:
    """A worker's share of the crops, in parts; data sets of one kind contribute equally, however large they are.

    Args:
        excluded: Endings of the keys of rows that are left out, so that they can be tested on.
        on_bad: Called with each row that cannot be decoded.
        known: The first parts, from an earlier call with the same arguments; their codes are not computed again.

    Raises:
        UsageError: a data set has no usable image.
        TooManyBadRowsError: more rows of a data set than its `max_bad_fraction` cannot be decoded.
    """
    at = 0
    for indexes, is_style in ((styles, True), (contents, False)):
        for number, index in enumerate(indexes):
            places = len(indexes) * world_size
            part = number * world_size + rank
            half = config.num_crops // 2
            count = half * (part + 1) // places - half * part // places
            rng = np.random.default_rng([config.seed, int(is_style), number, rank])
            painted_share = config.painted_share if is_style else 0.0
            images = _augmented(index, count, is_style, tuple(excluded), on_bad, rng)
            for chunk in _chunks(images):
                mixtures = _mixtures(len(chunk), painted_share, rng)
                end = at + len(chunk)
                is_known = known is not None and end <= len(known)
                yield known.take(slice(at, end)) if is_known else _with_codes(teacher, chunk, is_style, *mixtures)  # type: ignore[union-attr]
                at = end


def _augmented(
    index: Index, count: int, is_style: bool, excluded: tuple[str, ...], on_bad: Callable[[BadRow], object], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """`count` crops (256, 256, 3) of images that are drawn evenly from all rows, row group by row group."""
    per_row = -(-count // index.num_rows)
    chosen = np.sort(rng.permutation(np.repeat(np.arange(index.num_rows), per_row))[:count])
    quarantine = Quarantine(index.num_rows, index.config.max_bad_fraction)
    made = 0
    for group in range(index.num_groups):
        ids, times = np.unique(chosen[np.isin(chosen, index.sample_ids(group))], return_counts=True)
        if not len(ids):
            continue
        rows = read_groups(index, [group]).take(ids)
        images: list[np.ndarray] = []
        for image, key, copies in zip(decode_rows(rows, index.config.max_pixels, np.asarray), rows.key, times.tolist(), strict=True):
            if isinstance(image, BadRow):
                quarantine.add([image])
                on_bad(image)
            elif not key.endswith(excluded):
                images += [image] * copies
        made += len(images)
        # Crops that are handled together come from many images: the teacher stylizes some with the codes of others.
        yield from (_augmented_crop(images[place], is_style, rng) for place in rng.permutation(len(images)))
    if count and not made:
        raise UsageError(f"{', '.join(index.config.paths)} has no usable image")


def _chunks(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    for image in images:
        held.append(image)
        if len(held) == _AT_ONCE:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _mixtures(count: int, painted_share: float, rng: np.random.Generator) -> tuple[int, Tensor, Tensor]:
    """How many of the crops stay as they are; which two of these (2, n) give their codes to each of the others, in which shares (n, 1)."""
    plain = count - round(painted_share * count) or count
    if plain == count:
        return plain, torch.empty(2, 0, dtype=torch.long), torch.empty(0, 1)
    sources = np.stack([rng.integers(plain, size=count - plain) for _ in range(2)])
    return plain, torch.from_numpy(sources), torch.from_numpy(rng.random((count - plain, 1))).float()


@torch.inference_mode()
def _with_codes(teacher: Teacher, chunk: np.ndarray, is_style: bool, plain: int, sources: Tensor, shares: Tensor) -> Crops:
    """The crops of (n, 256, 256, 3) uint8 images; some of them are stylized first, with mixtures of the codes of the others."""
    pixels = to_float(chunk, torch.device("cpu"))
    codes = _codes(teacher, pixels[:plain])
    if plain < len(chunk):
        mixed = torch.lerp(codes[sources[0]], codes[sources[1]], shares)
        stylized = teacher.transformer(resized(pixels[plain:], _STYLIZED_PX), mixed)
        pixels[plain:] = resized(stylized, TEACHER_PX).clamp_(0, 1)
        codes = torch.cat([codes, _codes(teacher, pixels[plain:])])
    contents, thumbnails = (np.ascontiguousarray(to_uint8(resized(pixels, size_px))) for size_px in (CONTENT_PX, THUMBNAIL_PX))
    return Crops(contents, thumbnails, codes.numpy(), np.full(len(chunk), is_style))


def _codes(teacher: Teacher, pixels: Tensor) -> Tensor:
    """Codes (n, C) float32, whatever precision the network computes in."""
    dtype = next(teacher.predictor.parameters()).dtype
    parts = pixels.to(dtype).split(8)
    return torch.cat([teacher.predictor(part.contiguous(memory_format=torch.channels_last)).float() for part in parts])


def _augmented_crop(image: np.ndarray, is_style: bool, rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: a random square of the image, at random flipped, coarsened or with other colors."""
    shortest = min(image.shape[:2])
    side = shortest if shortest <= 64 else max(64, round(shortest * np.sqrt(rng.uniform(0.1, 1.0))))
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    crop = image[top : top + side, left : left + side]
    if rng.random() < 0.2 and side > 64:  # in-batch styles are as small as the contents
        coarse = int(rng.integers(32, 129))
        crop = cv2.resize(crop, (coarse, coarse), interpolation=cv2.INTER_AREA if coarse < side else cv2.INTER_LINEAR)
    is_shrunk = crop.shape[0] > TEACHER_PX
    crop = cv2.resize(crop, (TEACHER_PX, TEACHER_PX), interpolation=cv2.INTER_AREA if is_shrunk else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if is_style and rng.random() < 0.5:
        crop = np.rot90(crop, int(rng.integers(1, 4)))
    return _other_colors(crop, rng) if rng.random() < (0.6 if is_style else 0.3) else np.ascontiguousarray(crop)


def _other_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Channels mixed, permuted, scaled, shifted and bent at random."""
    mixing = np.eye(3) + rng.normal(0, 0.25, (3, 3))
    if rng.random() < 0.3:
        mixing = mixing[rng.permutation(3)]
    pixels = (image.astype(np.float32) / 255 - 0.5) @ mixing.T.astype(np.float32)
    pixels = pixels * rng.uniform(0.6, 1.2) + 0.5 + rng.uniform(-0.15, 0.15)
    return (pixels.clip(0, 1) ** rng.uniform(0.7, 1.4) * 255).round().astype(np.uint8)
