"""Small data sets in the layouts of the real ones, written by the tests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat

from ray_sassl.evaluation.targets import Card
from ray_sassl.evaluation.targets.cards import card_of


@dataclass(frozen=True)
class Written:
    """A small data set.

    Attributes:
        card: Its card, with the sizes of the small one.
        folder: Where its files are.
        train: The label of each train image by name.
        test: The same of test images.
    """

    card: Card
    folder: Path
    train: dict[str, int]
    test: dict[str, int]


def image_bytes(seed: int, format_: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_)
    return out.getvalue()


def put_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(seed))


def small(name: str, folder: Path, train: dict[str, int], test: dict[str, int]) -> Written:
    num_classes = len(set(train.values()) | set(test.values()))
    card = replace(card_of(name), num_classes=num_classes, num_train=len(train), num_test=len(test))
    return Written(card, folder, train, test)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _pickled(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return _md5(path)


def _arrays(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 3 * 32 * 32), np.uint8)


def cifar10(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "cifar-10-batches-py"
    names = [f"data_batch_{number}" for number in range(1, 6)]
    train = [[name, _pickled(base / name, {"data": _arrays(4, seed), "labels": [0, 1, 2, 0]})] for seed, name in enumerate(names)]
    test = [["test_batch", _pickled(base / "test_batch", {"data": _arrays(3, 9), "labels": [2, 1, 0]})]]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": _pickled(base / "batches.meta", {"label_names": ["a", "b", "c"]})}
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        patch.setattr(tv.CIFAR10, name, value)
    return small("cifar10", folder, {str(row): [0, 1, 2, 0][row % 4] for row in range(20)}, {"0": 2, "1": 1, "2": 0})


def cifar100(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "cifar-100-python"
    train = [["train", _pickled(base / "train", {"data": _arrays(4, 1), "fine_labels": [0, 1, 1, 0]})]]
    test = [["test", _pickled(base / "test", {"data": _arrays(2, 2), "fine_labels": [1, 0]})]]
    meta = {"filename": "meta", "key": "fine_label_names", "md5": _pickled(base / "meta", {"fine_label_names": ["a", "b"]})}
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        patch.setattr(tv.CIFAR100, name, value)
    return small("cifar100", folder, {"0": 0, "1": 1, "2": 1, "3": 0}, {"0": 1, "1": 0})


def food101(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    halves: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, name in enumerate(("apple_pie", "waffles")):
        for half, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
            lists[half][name] = [f"{name}/{10 * label + number}" for number in numbers]
            for number in numbers:
                put_image(folder / "food-101" / "images" / name / f"{10 * label + number}.jpg", number)
                halves[half][f"{10 * label + number}.jpg"] = label
    (folder / "food-101" / "meta").mkdir()
    for half, content in lists.items():
        (folder / "food-101" / "meta" / f"{half}.json").write_text(json.dumps(content))
    return small("food101", folder, halves["train"], halves["test"])


def dtd(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "dtd" / "dtd"
    splits: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
    (base / "labels").mkdir(parents=True)
    for place, split in enumerate(splits):
        lines = []
        for label, name in enumerate(("banded", "zigzagged")):
            put_image(base / "images" / name / f"{name}_{place}.jpg", place)
            splits[split][f"{name}_{place}.jpg"] = label
            lines.append(f"{name}/{name}_{place}.jpg\n")
        (base / "labels" / f"{split}1.txt").write_text("".join(lines))
    return small("dtd", folder, splits["train"] | splits["val"], splits["test"])


def flowers102(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "flowers-102"
    labels = np.arange(306) % 102 + 1
    for number in range(1, 307):
        put_image(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    savemat(base / "setid.mat", {"trnid": np.arange(1, 103)[None], "valid": np.arange(103, 205)[None], "tstid": np.arange(205, 307)[None]})
    files = {"image": ("102flowers.tgz", ""), "label": ("imagelabels.mat", _md5(base / "imagelabels.mat"))}
    patch.setattr(tv.Flowers102, "_file_dict", files | {"setid": ("setid.mat", _md5(base / "setid.mat"))})
    named = {f"image_{number:05d}.jpg": int(labels[number - 1]) - 1 for number in range(1, 307)}
    names = list(named)
    return small("flowers102", folder, {name: named[name] for name in names[:204]}, {name: named[name] for name in names[204:]})


def cars(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    halves: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    for half, table in (("train", base / "devkit" / "cars_train_annos.mat"), ("test", base / "cars_test_annos_withlabels.mat")):
        rows = np.zeros(4, dtype=[("fname", object), ("class", object)])
        for number in range(4):
            name = f"{half}_{number}.jpg"
            put_image(base / f"cars_{half}" / name, number)
            rows[number] = (name, number % 2 + 1)
            halves[half][name] = number % 2
        savemat(table, {"annotations": rows[None]})
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], object)[None]})
    return small("cars", folder, halves["train"], halves["test"])


def inat2021(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    halves: dict[str, dict[str, int]] = {"2021_train": {}, "2021_valid": {}}
    for label in range(3):
        for version, numbers in (("2021_train", (2, 1, 3)), ("2021_valid", (4,))):
            for number in numbers:
                name = f"{label}-{number}.jpg"
                put_image(folder / version / f"{label:05d}_Animalia_P_C_O_F_G_s{label}" / name, number)
                halves[version][name] = label
    return small("inat2021", folder, halves["2021_train"], halves["2021_valid"])


def sun397(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    halves: dict[str, dict[str, int]] = {"Training": {}, "Testing": {}}
    lines: dict[str, list[str]] = {"Training": [], "Testing": []}
    classes = ("/a/abbey", "/a/apartment_building/outdoor")
    for label, name in enumerate(classes):
        for half, number in (("Training", 0), ("Testing", 1), ("Training", 2), ("", 3)):
            file = f"sun_{label}{number}.jpg"
            put_image(folder / "SUN397" / name.lstrip("/") / file, number)
            if half:
                halves[half][file] = label
                lines[half].append(f"{name}/{file}\n")
    (folder / "SUN397" / "ClassName.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "Partitions").mkdir()
    for half, text in lines.items():
        (folder / "Partitions" / f"{half}_01.txt").write_text("".join(text))
    return small("sun397", folder, halves["Training"], halves["Testing"])


def caltech101(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    base = folder / "caltech101"
    (base / "Annotations").mkdir(parents=True)
    for name, num in (("BACKGROUND_Google", 31), ("accordion", 33), ("yin_yang", 32)):
        for number in range(1, num + 1):
            put_image(base / "101_ObjectCategories" / name / f"image_{number:04d}.jpg", number)
    card = replace(card_of("caltech101"), num_classes=3, num_train=90, num_test=6)
    return Written(card, folder, {}, {})  # which are drawn is not known here; names are used in several classes


def imagenet_1percent(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    train, test = {}, {}
    for label, wnid in enumerate(("n01440764", "n01443537")):
        for number in range(4):
            put_image(folder / "train" / wnid / f"{wnid}_{number}.JPEG", number)
        put_image(folder / "val" / wnid / f"ILSVRC2012_val_0000000{label}.JPEG", label)
        test[f"ILSVRC2012_val_0000000{label}.JPEG"] = label
        train |= {f"{wnid}_3.JPEG": label, f"{wnid}_1.JPEG": label}
    (folder / "1percent.txt").write_text("".join(f"{name}\n" for name in train))
    return small("imagenet_1percent", folder, train, test)


def diabetic_retinopathy(folder: Path, patch: pytest.MonkeyPatch) -> Written:
    train, test = {}, {}
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for number in range(10):
        for half in ("train", "test"):
            put_image(folder / half / f"{number}_left.jpeg", number)
            rows[half].append({"image": f"{number}_left", "level": str(number % 5), "Usage": "Public" if number in (2, 9) else "Private"})
        train[f"{number}_left.jpeg"] = number % 5
        if number not in (2, 9):
            test[f"{number}_left.jpeg"] = number % 5
    for half, name, fields in (
        ("train", "trainLabels.csv", ("image", "level")),
        ("test", "retinopathy_solution.csv", ("image", "level", "Usage")),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[half])
    return small("diabetic_retinopathy", folder, train, test)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Written]] = {
    writer.__name__: writer
    for writer in (
        cifar10,
        cifar100,
        food101,
        dtd,
        flowers102,
        cars,
        inat2021,
        sun397,
        caltech101,
        imagenet_1percent,
        diabetic_retinopathy,
    )
}


@pytest.fixture(params=sorted(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Each of the data sets, small."""
    folder = tmp_path / "files"
    folder.mkdir()
    return WRITERS[request.param](folder, monkeypatch)


@pytest.fixture
def food(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """A small Food-101."""
    folder = tmp_path / "files"
    folder.mkdir()
    return food101(folder, monkeypatch)
