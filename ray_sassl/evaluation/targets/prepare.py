"""Transfer data sets as Parquet: written once from their files, checked against their cards, and found by name.

    ROOT/NAME/train/shard-000000.parquet ...   ROOT/NAME/test/shard-000000.parquet ...   ROOT/NAME/card.json

with the columns `image`, `label` and `key`. `card.json` is written last; without it a data set is incomplete.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_sassl.data import DataConfig
from ray_sassl.data.decode import DecodeError, image_format, to_rgb
from ray_sassl.evaluation.targets import Card, Half, Samples
from ray_sassl.evaluation.targets.cards import CARDS
from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir, locked, mark_cache
from ray_sassl.files.own import mark_folder
from ray_sassl.process.errors import UsageError

HALVES: tuple[Half, ...] = get_args(Half)
_MARK = "card.json"
_SHARD_ROWS, _GROUP_ROWS = 4096, 256
_SHOWN = 10


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`.

    Attributes:
        path: The data set's folder.
        num_images: Number of train and test images.
        num_converted: Images in other formats than JPEG, PNG and WebP, which became PNG files.
        num_unreadable: Images that cannot be decoded; they are kept, and count as bad images when they are used.
    """

    path: str
    num_images: int
    num_converted: int
    num_unreadable: int


def default_root() -> str:
    """The folder in the cache."""
    return str(cache_dir() / "datasets")


def is_prepared(card: Card, root: str) -> bool:
    """Whether the data set exists there."""
    return storage.exists(storage.join(root, card.name, _MARK))


def prepared_cards(root: str) -> list[Card]:
    """The cards whose data sets exist there."""
    return [card for card in CARDS if is_prepared(card, root)]


def prepared_data(card: Card, root: str) -> tuple[DataConfig, DataConfig]:
    """The train and the test split of a prepared data set.

    Raises:
        UsageError: it does not exist there; the message says how to get it.
    """
    if not is_prepared(card, root):
        raise UsageError(f"{card.title} is not in {root}. {how_to_get(card)}")
    train, test = (DataConfig(path=storage.join(root, card.name, half)) for half in HALVES)
    return train, test


def how_to_get(card: Card) -> str:
    """How to get the data set."""
    if card.by_hand is None:
        return f"Get it with: ray-sassl data fetch {card.name}"
    return (
        f"It cannot be downloaded here: {card.by_hand}. It comes from {card.source}. Put its files into a folder, as {card.layout}, and "
        f"run: ray-sassl data fetch {card.name} --from FOLDER"
    )


def check_card(card: Card, half: Half, labels: np.ndarray, num_classes: int | None = None) -> None:
    """Check the labels of a split against its card.

    Args:
        labels: (N,) int64, the labels of all images.
        num_classes: Number of class names, if there are any.

    Raises:
        UsageError: there are more or fewer images or classes, a label is out of range, or a class has no images.
    """
    if num_classes is not None and num_classes != card.num_classes:
        raise UsageError(f"{card.title} has {card.num_classes:,} classes, and these files have {num_classes:,}")
    outside = np.unique(labels[(labels < 0) | (labels >= card.num_classes)])
    if len(outside):
        raise UsageError(f"{card.title} has the labels 0 to {card.num_classes - 1:,}, and {half} has {_listed(outside)}")
    if len(labels) != card.num_images(half):
        raise UsageError(
            f"{card.title} has {card.num_images(half):,} {half} images ({card.splits}), and {len(labels):,} were found. To use another "
            "data set, give it another name"
        )
    missing = np.setdiff1d(np.arange(card.num_classes), labels)
    if len(missing):
        raise UsageError(f"{card.title}: no {half} images of class {_listed(missing)}")


def prepare(
    card: Card, folder: Path, root: str, *, download: bool = False, advance: Callable[[int], object] = lambda done: None
) -> Prepared:
    """Write a data set as Parquet from its files.

    Args:
        folder: The folder of its files, laid out as the card says.
        root: A path or URI; the data set goes into a folder of its name there.
        download: Whether torchvision should download missing files to the folder; it checks them by md5.
        advance: Called with 1 for every image.

    Raises:
        UsageError: the files are missing or do not match the card.
    """
    halves: dict[Half, Samples] = {half: _read(card, folder, half, download) for half in HALVES}
    for half, samples in halves.items():
        check_card(card, half, np.asarray(samples.labels, np.int64), len(samples.class_names) or None)
    mark_folder(storage.join(root, card.name), known=None)
    num_converted = num_unreadable = 0
    for half, samples in halves.items():
        for shard, start in enumerate(range(0, len(samples.labels), _SHARD_ROWS)):
            rows = range(start, min(start + _SHARD_ROWS, len(samples.labels)))
            path = storage.join(root, card.name, half, f"shard-{shard:06d}.parquet")
            converted, unreadable = _write_shard(path, samples, rows, advance)
            num_converted, num_unreadable = num_converted + converted, num_unreadable + unreadable
    num_images = sum(len(samples.labels) for samples in halves.values())
    storage.write_text(storage.join(root, card.name, _MARK), json.dumps(_facts(card, halves["train"].class_names), indent=2) + "\n")
    return Prepared(storage.join(root, card.name), num_images, num_converted, num_unreadable)


def fetch(card: Card, root: str, *, keep_files: bool = False, advance: Callable[[int], object] = lambda done: None) -> Prepared:
    """Download a data set and write it as Parquet; the downloaded files are deleted afterward, unless that fails.

    Raises:
        UsageError: it may not be downloaded, the download fails, or the files do not match the card.
    """
    if card.by_hand is not None:
        raise UsageError(f"{card.title}: {how_to_get(card)}")
    files = cache_dir() / "downloads" / card.name
    with locked(files):
        mark_cache()
        files.mkdir(parents=True, exist_ok=True)
        prepared = prepare(card, files, root, download=True, advance=advance)
        if not keep_files:
            shutil.rmtree(files)
    return prepared


def _read(card: Card, folder: Path, half: Half, download: bool) -> Samples:
    try:
        return card.read(folder, half, download)
    except UsageError:
        raise
    except (RuntimeError, OSError, ValueError, LookupError, ImportError) as error:  # torchvision's errors about missing or damaged files
        what = "downloaded" if download else f"read from {folder}"
        raise UsageError(f"{card.title} cannot be {what}: {error}. The folder should hold: {card.layout}") from error


def _write_shard(path: str, samples: Samples, rows: range, advance: Callable[[int], object]) -> tuple[int, int]:
    """The number of converted and of unreadable images."""
    images: list[bytes] = []
    keys: list[str] = []
    num_converted = num_unreadable = 0
    for row in rows:
        try:
            content, key = samples.read(row)
        except OSError as error:
            raise UsageError(f"an image is missing or cannot be read: {error}") from error
        try:
            image_format(content)
        except DecodeError:
            converted = _as_png(content)
            num_converted, num_unreadable = num_converted + (converted is not None), num_unreadable + (converted is None)
            content = converted or content
        images.append(content)
        keys.append(key)
        advance(1)
    labels = pa.array(samples.labels[rows.start : rows.stop], pa.int64())
    table = pa.table({"image": pa.array(images, pa.binary()), "label": labels, "key": keys})
    with storage.open_atomic(path) as file:
        pq.write_table(table, file, row_group_size=_GROUP_ROWS, compression="NONE", use_dictionary=False)
    return num_converted, num_unreadable


_CONVERTED = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Image formats that are rewritten as PNG."""


def _as_png(content: bytes) -> bytes | None:
    """A PNG of an image in another format, such as a GIF named `.jpg`, or None if it cannot be read."""
    try:
        out = io.BytesIO()
        to_rgb(Image.open(io.BytesIO(content), formats=_CONVERTED)).save(out, "PNG")
    except (OSError, SyntaxError, ValueError):
        return None
    return out.getvalue()


def _facts(card: Card, class_names: tuple[str, ...]) -> dict[str, Any]:
    names = ("name", "title", "metric", "num_classes", "num_train", "num_test", "splits", "license", "source", "paper")
    return {**{name: getattr(card, name) for name in names}, "class_names": class_names}


def _listed(values: np.ndarray) -> str:
    more = f" and {len(values) - _SHOWN:,} more" if len(values) > _SHOWN else ""
    return ", ".join(str(value) for value in values[:_SHOWN]) + more
