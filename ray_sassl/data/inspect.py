"""A summary of a data set, from its index and a sample of its rows."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from ray_sassl.data import NO_LABEL, Rows
from ray_sassl.data.decode import DecodeError, decode_rows, image_size
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import all_labels, read_groups
from ray_sassl.files.own import write_picture

_GROUPS_SAMPLED = 8
_BAD_TILE = (200, 40, 40)
_GAP_PX = 2


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Attributes:
        format: "parquet", "webdataset" or "folder".
        num_files, num_groups, num_rows, num_bytes: Sizes of the whole data set.
        labels: Rows of each label in the whole data set, with `NO_LABEL` (-1) for those without one.
        class_names: The name of each label, if the format has names.
        ignored: How many files or members are not used, by extension.
        problems: Damage to whole files.
        num_sampled: Rows of the sample for the fields below; only their headers were read.
        image_formats: Sampled rows of each format.
        width_px, height_px, encoded_bytes: Spread over the sampled rows; None if none could be read.
        bad_rows: Sampled rows that are not images.
    """

    format: str
    num_files: int
    num_groups: int
    num_rows: int
    num_bytes: int
    labels: dict[int, int]
    class_names: tuple[str, ...]
    ignored: dict[str, int]
    problems: tuple[BadRow, ...]
    num_sampled: int
    image_formats: dict[str, int]
    width_px: Spread | None
    height_px: Spread | None
    encoded_bytes: Spread | None
    bad_rows: tuple[BadRow, ...]


def inspect(index: Index, num_sampled: int = 512, seed: int = 0) -> Summary:
    """The data set's counts, and sizes and formats from a sample of up to `num_sampled` rows."""
    rows = sample_rows(index, num_sampled, seed)
    headers: list[tuple[str, int, int, int]] = []
    bad_rows: list[BadRow] = []
    for place, encoded in enumerate(rows.encoded):
        if isinstance(encoded, BadRow):
            bad_rows.append(encoded)
            continue
        try:
            headers.append((*image_size(encoded), len(encoded)))
        except DecodeError as error:
            bad_rows.append(rows.bad_row(place, str(error)))
    label, count = np.unique(all_labels(index), return_counts=True)
    return Summary(
        format=index.format,
        num_files=index.num_files,
        num_groups=index.num_groups,
        num_rows=index.num_rows,
        num_bytes=index.num_bytes,
        labels=dict(zip(label.tolist(), count.tolist(), strict=True)),
        class_names=index.class_names,
        ignored=index.ignored,
        problems=index.problems,
        num_sampled=len(rows),
        image_formats=dict(Counter(header[0] for header in headers).most_common()),
        width_px=_spread([header[1] for header in headers]),
        height_px=_spread([header[2] for header in headers]),
        encoded_bytes=_spread([header[3] for header in headers]),
        bad_rows=tuple(bad_rows),
    )


def sample_rows(index: Index, num_rows: int, seed: int = 0) -> Rows:
    """Up to `num_rows` rows from a few row groups, by sample id; the same for the same seed."""
    rng = np.random.default_rng([seed, 0])
    groups = np.sort(rng.permutation(np.flatnonzero(index.group_rows))[:_GROUPS_SAMPLED]).tolist()
    ids = [index.sample_ids(group) for group in groups]
    chosen = np.sort(rng.permutation(np.concatenate(ids))[:num_rows])
    # One group at a time, so that the others are not in memory.
    return Rows.joined(
        [read_groups(index, [group]).take(np.intersect1d(chosen, of_group)) for group, of_group in zip(groups, ids, strict=True)]
    )


def contact_sheet(index: Index, path: str | os.PathLike[str], columns: int = 12, lines: int = 8, tile_px: int = 96, seed: int = 0) -> None:
    """Write a PNG with a sample of the images, each fitted into a square tile; rows that are not images are red.

    Tiles are sorted by label if there are labels, so that images of a class are in one line.
    """
    rows = sample_rows(index, columns * lines, seed)
    if (rows.label != NO_LABEL).any():
        rows = rows.take(rows.sample_id[np.argsort(rows.label, kind="stable")])
    step = tile_px + _GAP_PX
    sheet = Image.new("RGB", (columns * step - _GAP_PX, -(-len(rows) // columns) * step - _GAP_PX), "white")
    for place, found in enumerate(decode_rows(rows, index.config.max_pixels, lambda image: _fit(image, tile_px))):
        tile = Image.new("RGB", (tile_px, tile_px), _BAD_TILE) if isinstance(found, BadRow) else found
        left, top = place % columns * step, place // columns * step
        sheet.paste(tile, (left + (tile_px - tile.width) // 2, top + (tile_px - tile.height) // 2))
    file = BytesIO()
    sheet.save(file, format="PNG")
    write_picture(path, file.getvalue())


def _fit(image: Image.Image, tile_px: int) -> Image.Image:
    scale = tile_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC, reducing_gap=2.0)


def _spread(values: list[int]) -> Spread | None:
    return Spread(min(values), int(np.median(values)), max(values)) if values else None
