"""A small data set of VOC's form: colored squares and discs on gray, and what trains on it in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.detection.training import DetectionJob
from ray_sassl.evaluation.detection.voc import read_voc

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_example(folder: Path, name: str, objects: list[tuple[str, tuple, int]], size: tuple[int, int] = (64, 48)) -> None:
    """An image and its XML file."""
    picture = Image.new("RGB", size, (120, 120, 120))
    draw = ImageDraw.Draw(picture)
    for kind, (left, top, right, bottom), _ in objects:
        box = (left - 1, top - 1, right - 1, bottom - 1)
        if right > left and bottom > top:
            (draw.rectangle if kind == "square" else draw.ellipse)(box, fill=(220, 40, 40) if kind == "square" else (40, 60, 220))
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    written = "".join(OBJECT.format(name=kind, box=box, difficult=difficult) for kind, box, difficult in objects)
    xml = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{written}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(xml)


def write_data(folder: Path, num_train: int = 24, num_test: int = 8, prefix: str = "") -> Path:
    """Splits `trainval` and `test` of images with one or two objects."""
    rng = np.random.default_rng(0)
    for split, num in (("trainval", num_train), ("test", num_test)):
        names = [f"{prefix}{split}{number}" for number in range(num)]
        for name in names:
            objects = []
            for half in range(rng.integers(1, 3)):
                left, top = rng.integers(1 + 32 * half, 12 + 32 * half), rng.integers(1, 28)
                side = rng.integers(12, 20)
                objects.append((("disc", "square")[rng.integers(2)], (left, top, left + side, top + side), 0))
            write_example(folder, name, objects)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


SMALL = DetectConfig(
    architecture="fpn",
    steps=40,
    batch_size=4,
    learning_rate=0.08,
    warmup_steps=5,
    train_px=(48, 56),
    test_px=48,
    max_px=96,
    fpn_channels=16,
    hidden_size=32,
    rois_per_image=32,
    test_proposals=100,
    checkpoint_every=20,
)


def small_job(folder: Path, checkpoint: Path, encoder: str = "resnet20", **changes) -> DetectionJob:
    """An untrained ResNet on the data in the folder."""
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(name=encoder))[0]
    train, test = read_voc(str(folder), (), ())
    config = DetectConfig(**(SMALL.model_dump(exclude_unset=True) | changes))
    return DetectionJob(network, (0.5,) * 3, (0.25,) * 3, train, test, config, str(checkpoint))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("voc"))
