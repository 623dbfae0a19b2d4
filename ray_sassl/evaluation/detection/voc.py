"""Data sets in the form of PASCAL VOC (Everingham et al. 2010): images, an XML file of boxes for each, and lists of names.

    FOLDER/JPEGImages/NAME.jpg   FOLDER/Annotations/NAME.xml   FOLDER/ImageSets/Main/SPLIT.txt

In VOC's files, xmin, ymin, xmax and ymax are pixels that count from 1 and belong to the box; here they become edges that count from 0, so
xmin and ymin are lowered by one. Boxes are clipped to the image. A box whose xmax is not above its xmin, or ymax above its ymin, before or
after clipping, has no area: it is dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from xml.etree import ElementTree

import numpy as np

from ray_sassl.files import storage
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError

_THREADS = 16
_MAX_BYTES = 2**24
"""Maximum size of the annotation of an image; those of VOC have some kilobytes."""
_IMAGES, _BOXES, _LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_YEARS = ("VOC2007", "VOC2012")


@dataclass(frozen=True, eq=False)
class Truth:
    """The boxes of an image.

    Attributes:
        boxes: (B, 4) float64, left, top, right and bottom edges in pixels.
        labels: (B,) int64.
        is_difficult: (B,) bool: whether detections of the box are ignored.
    """

    boxes: np.ndarray
    labels: np.ndarray
    is_difficult: np.ndarray


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Images and their boxes.

    Attributes:
        paths: Paths of the images.
        truths: The boxes of each image.
        class_names: The name of each label.
        num_dropped: How many boxes were dropped because they have no area.
    """

    paths: tuple[str, ...]
    truths: tuple[Truth, ...]
    class_names: tuple[str, ...]
    num_dropped: int

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int]) -> DetectionSet:
        """Some of the images by their places; boxes that were dropped count as before."""
        return replace(self, paths=tuple(self.paths[row] for row in rows), truths=tuple(self.truths[row] for row in rows))

    @property
    def num_boxes(self) -> int:
        return sum(len(truth.labels) for truth in self.truths)

    @property
    def fingerprint(self) -> str:
        """sha256 of names, boxes and labels."""
        digest = hashlib.sha256("\n".join((*self.paths, *self.class_names)).encode())
        for truth in self.truths:
            digest.update(truth.boxes.tobytes() + truth.labels.tobytes() + truth.is_difficult.tobytes())
        return digest.hexdigest()


def read_voc(data: str, train: Sequence[str], test: Sequence[str]) -> tuple[DetectionSet, DetectionSet]:
    """The train and the test set; their classes are those of the train boxes, in alphabetical order.

    Args:
        data: Path or URI of a folder of VOC's form, or of one that contains such folders.
        train: Splits, see `DetectConfig`; by default the usual ones.
        test: Splits.

    Raises:
        UsageError: the folder has another form, a split or a file is missing or damaged, or a class is only in the test set.
    """
    usual = _usual_splits(data) if not (train and test) else ((), ())
    raw = [_read_splits(data, given or usual[place]) for place, given in enumerate((train, test))]
    names = [sorted({name for image in images for name in image.names}) for images in raw]
    if not names[0]:
        raise UsageError(f"{data}: the train split has no boxes to learn from")
    if unknown := sorted(set(names[1]) - set(names[0])):
        raise UsageError(f"{data}: the test split has boxes of {', '.join(unknown)}, and the train split has none of that class")
    train_set, test_set = (_joined(images, tuple(names[0])) for images in raw)
    if both := set(train_set.paths) & set(test_set.paths):
        raise UsageError(f"{data}: {len(both):,} images are in the train and in the test split, such as {min(both)}")
    return train_set, test_set


@dataclass(frozen=True)
class _Image:
    path: str
    boxes: np.ndarray
    names: tuple[str, ...]
    is_difficult: tuple[bool, ...]
    num_dropped: int


def _joined(images: list[_Image], class_names: tuple[str, ...]) -> DetectionSet:
    place = {name: number for number, name in enumerate(class_names)}
    truths = [
        Truth(image.boxes, np.array([place[name] for name in image.names], np.int64), np.array(image.is_difficult, bool))
        for image in images
    ]
    return DetectionSet(tuple(image.path for image in images), tuple(truths), class_names, sum(image.num_dropped for image in images))


def _usual_splits(data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    entries = {storage.name_of(entry.path) for entry in storage.list_dir(data)}
    if not entries:
        raise UsageError(
            f"{data} is not a folder, or it is empty; give one of PASCAL VOC's form (with {_IMAGES}, {_BOXES} and {_LISTS} in it)"
        )
    if _BOXES in entries:
        return ("trainval",), ("test",)
    years = [year for year in _YEARS if year in entries]
    if not years:
        raise UsageError(
            f"{data} is not of PASCAL VOC's form: it has neither {_BOXES} nor {' or '.join(_YEARS)} in it, only "
            f"{', '.join(sorted(entries)[:8])}. It needs {_IMAGES}, {_BOXES} and {_LISTS}."
        )
    return tuple(f"{year}/trainval" for year in years), (f"{years[0]}/test",)


def _read_splits(data: str, splits: Sequence[str]) -> list[_Image]:
    images: list[_Image] = []
    for split in splits:
        inner, _, name = split.rpartition("/")
        folder = storage.join(data, inner) if inner else data
        wanted = _names_of(folder, name)
        pictures = {storage.name_of(entry.path): entry.path for entry in storage.list_dir(storage.join(folder, _IMAGES))}
        with ThreadPoolExecutor(_THREADS) as pool:
            images += pool.map(partial(_read_image, folder, pictures), wanted)
    return images


def _names_of(folder: str, split: str) -> list[str]:
    """The names that the split lists; a second column, which the lists of single classes have, is ignored."""
    lists = storage.join(folder, _LISTS)
    try:
        lines = storage.read_text(storage.join(lists, f"{split}.txt")).splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        known = sorted(storage.name_of(entry.path).removesuffix(".txt") for entry in storage.list_dir(lists))
        there = f"It has: {', '.join(known[:20])}." if known else f"There is no {lists}."
        raise UsageError(f"{folder} has no split {split!r}{did_you_mean(split, known)}. {there}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UsageError(f"{storage.join(lists, split)}.txt is empty")
    return names


def _read_image(folder: str, pictures: dict[str, str], name: str) -> _Image:
    picture = next((pictures[name + extension] for extension in _EXTENSIONS if name + extension in pictures), None)
    if picture is None:
        raise UsageError(f"{folder}: a split lists {name}, and {_IMAGES} has no {name}{_EXTENSIONS[0]}")
    path = storage.join(folder, _BOXES, f"{name}.xml")
    try:
        root = ElementTree.fromstring(storage.read_bytes(path, _MAX_BYTES))
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: a split lists {name}, and {_BOXES} has no {name}.xml") from error
    except ElementTree.ParseError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    size = [_number(path, root, f"size/{side}") for side in ("width", "height")]
    boxes, names, is_difficult, num_dropped = [], [], [], 0
    for part in root.iter("object"):
        left, top, right, bottom = (_number(path, part, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
        edges = [max(left - 1, 0), max(top - 1, 0), min(right, size[0]), min(bottom, size[1])]
        if right <= left or bottom <= top or edges[2] <= edges[0] or edges[3] <= edges[1]:
            num_dropped += 1
            continue
        boxes.append(edges)
        names.append(_text(path, part, "name"))
        is_difficult.append((part.findtext("difficult") or "0").strip() == "1")
    return _Image(picture, np.array(boxes, np.float64).reshape(-1, 4), tuple(names), tuple(is_difficult), num_dropped)


def _text(path: str, part: ElementTree.Element, tag: str) -> str:
    text = (part.findtext(tag) or "").strip()
    if not text:
        raise UsageError(f"{path}: <{tag}> is missing or empty")
    return text


def _number(path: str, part: ElementTree.Element, tag: str) -> float:
    text = _text(path, part, tag)
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{path}: <{tag}> should be a number and is {text!r}") from error
