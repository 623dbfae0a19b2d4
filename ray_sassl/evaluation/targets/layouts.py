"""The files of transfer data sets, read by torchvision's data sets if they know the splits, otherwise by this module.

Each function takes the folder, the split, and whether to download into the folder first; torchvision checks downloads by md5. Files are not
decoded. CIFAR's arrays become PNG files, without loss.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_sassl.evaluation.targets import Half, Samples
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
_PARTITIONS_SHA256 = "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9"
"""From torchvision's prototype data sets; the authors publish none."""
_LIST_BYTES = 1 << 26
"""Maximum size of a list of images."""
_CALTECH_SHOTS, _CALTECH_SEED = 30, 0


def cifar10(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import CIFAR10

    return _arrays(CIFAR10(folder, train=half == "train", download=download))


def cifar100(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import CIFAR100

    return _arrays(CIFAR100(folder, train=half == "train", download=download))


def food101(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import Food101

    return _files([Food101(folder, split=half, download=download, loader=_FileLoader())])


def dtd(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import DTD

    splits = ("train", "val") if half == "train" else ("test",)
    return _files([DTD(folder, split=split, partition=1, download=download, loader=_FileLoader()) for split in splits])


def flowers102(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import Flowers102

    splits = ("train", "val") if half == "train" else ("test",)
    return _files([Flowers102(folder, split=split, download=download, loader=_FileLoader()) for split in splits])


def cars(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import StanfordCars

    return _files([StanfordCars(folder, split=half, download=download, loader=_FileLoader())])


def inat2021(folder: Path, half: Half, download: bool) -> Samples:
    from torchvision.datasets import INaturalist

    version = "2021_train" if half == "train" else "2021_valid"
    dataset = INaturalist(folder, version=version, download=download, loader=_FileLoader())
    # torchvision lists a class's files in the order of the file system
    index = sorted(dataset.index)
    paths = [Path(dataset.root) / dataset.all_categories[label] / name for label, name in index]
    return Samples([label for label, _ in index], _reader_of(paths), tuple(dataset.all_categories))


def sun397(folder: Path, half: Half, download: bool) -> Samples:
    """The first of the ten splits with 50 images of each class to train and 50 to test, as the authors give them in `Partitions/`."""
    from torchvision.datasets import SUN397

    number = {name: label for label, name in enumerate(SUN397(folder, download=download).classes)}
    lists = folder / "Partitions" / f"{'Training' if half == 'train' else 'Testing'}_01.txt"
    if download and not lists.exists():
        _download_partitions(folder)
    if not lists.exists():
        raise UsageError(f"{lists}, the list of the {half} images, is missing; unpack {_PARTITIONS} in {lists.parent}")
    lines = [line.strip().lstrip("/") for line in storage.read_text(lists, _LIST_BYTES).splitlines() if line.strip()]
    unknown = [line for line in lines if _sun_class(line) not in number]
    if unknown:
        raise UsageError(f"{lists} names images of classes that ClassName.txt does not have, such as {unknown[0]}")
    paths = [folder / "SUN397" / line for line in lines]
    return Samples([number[_sun_class(line)] for line in lines], _reader_of(paths), tuple(number))


def _sun_class(line: str) -> str:
    """`abbey` of `a/abbey/sun_1.jpg`, and `apartment_building/outdoor` of `a/apartment_building/outdoor/sun_1.jpg`."""
    return "/".join(line.split("/")[1:-1])


def _download_partitions(folder: Path) -> None:
    from torchvision.datasets.utils import download_url, extract_archive

    download_url(_PARTITIONS, folder, "Partitions.zip")
    archive = folder / "Partitions.zip"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != _PARTITIONS_SHA256:
        archive.unlink()
        raise UsageError(f"{_PARTITIONS} has the sha256 {found} and should have {_PARTITIONS_SHA256}; it was deleted")
    extract_archive(archive, folder / "Partitions")


def caltech101(folder: Path, half: Half, download: bool) -> Samples:
    """30 images of each of the 102 folders to train, drawn with a fixed seed, all others to test; `BACKGROUND_Google` counts as a class."""
    from torchvision.datasets import Caltech101

    Caltech101(folder, download=download)  # it leaves the background out
    root = folder / "caltech101" / "101_ObjectCategories"
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    rng = np.random.default_rng(_CALTECH_SEED)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(path for path in (root / name).iterdir() if path.suffix.lower() == ".jpg")
        drawn = {files[place] for place in rng.permutation(len(files))[:_CALTECH_SHOTS]}
        chosen = [path for path in files if (path in drawn) is (half == "train")]
        paths += chosen
        labels += [label] * len(chosen)
    return Samples(labels, _reader_of(paths), tuple(names))


def imagenet_1percent(folder: Path, half: Half, download: bool) -> Samples:
    """The files `train/WNID/*.JPEG` that `1percent.txt` names, and `val/WNID/*.JPEG`."""
    names = sorted(path.name for path in _existing(folder / "val").iterdir() if path.is_dir())
    number = {name: label for label, name in enumerate(names)}
    if half == "test":
        paths = [path for name in names for path in sorted((folder / "val" / name).iterdir()) if path.is_file()]
    else:
        lines = [line.strip() for line in storage.read_text(_existing(folder / "1percent.txt"), _LIST_BYTES).splitlines() if line.strip()]
        paths = [folder / "train" / line.partition("_")[0] / line for line in lines]
        if unknown := [path for path in paths if path.parent.name not in number]:
            raise UsageError(f"1percent.txt names {unknown[0].name}, and {folder / 'val'} has no class {unknown[0].parent.name}")
    return Samples([number[path.parent.name] for path in paths], _reader_of(paths), tuple(names))


def diabetic_retinopathy(folder: Path, half: Half, download: bool) -> Samples:
    """Kaggle's files: `train/*.jpeg` with `trainLabels.csv`; `test/*.jpeg` with the rows of `Private` use in `retinopathy_solution.csv`."""
    table = _existing(folder / ("trainLabels.csv" if half == "train" else "retinopathy_solution.csv"))
    rows = list(csv.DictReader(io.StringIO(storage.read_text(table, _LIST_BYTES), newline="")))
    if not rows or not {"image", "level"} <= set(rows[0]) or (half == "test" and "Usage" not in rows[0]):
        raise UsageError(
            f"{table} needs the columns image, level{', Usage' if half == 'test' else ''}; it has {', '.join(rows[0]) if rows else 'none'}"
        )
    rows = [row for row in rows if half == "train" or row["Usage"] == "Private"]
    paths = [folder / half / f"{row['image']}.jpeg" for row in rows]
    return Samples([int(row["level"]) for row in rows], _reader_of(paths), ("none", "mild", "moderate", "severe", "proliferative"))


class _FileLoader:
    """Replaces torchvision's loader: it returns a file's path, so nothing is decoded."""

    def __call__(self, path: str | Path) -> Path:
        return Path(path)


def _files(datasets: Sequence[Any]) -> Samples:
    """The splits' images one after the other."""
    pairs = [dataset[place] for dataset in datasets for place in range(len(dataset))]
    return Samples([int(label) for _, label in pairs], _reader_of([path for path, _ in pairs]), tuple(getattr(datasets[0], "classes", ())))


def _arrays(dataset: Any) -> Samples:
    def read(place: int) -> tuple[bytes, str]:
        out = io.BytesIO()
        Image.fromarray(dataset.data[place]).save(out, "PNG")
        return out.getvalue(), str(place)

    return Samples([int(label) for label in dataset.targets], read, tuple(dataset.classes))


def _reader_of(paths: Sequence[Path]) -> Callable[[int], tuple[bytes, str]]:
    return lambda place: (storage.read_bytes(paths[place]), paths[place].name)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path} is missing")
    return path
