"""Test images with their true and their detected boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ray_sassl.data import DataConfig
from ray_sassl.data.decode import decode
from ray_sassl.evaluation.detection.average_precision import Detections
from ray_sassl.evaluation.detection.voc import DetectionSet
from ray_sassl.evaluation.figures import curves
from ray_sassl.files import storage
from ray_sassl.views.grid import image_grid

SHOWN_FROM = 0.5
"""Detections with lower scores are not drawn."""
_CELL_PX = 360
_COLORS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194), (188, 189, 34))
_MAX_PIXELS = DataConfig.model_fields["max_pixels"].default


def boxes_picture(test: DetectionSet, detections: Sequence[Detections], num_shown: int, seed: int) -> bytes:
    """Some test images, one per line: the true boxes on the left, detections with a score of at least 0.5 on the right."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(test))[:num_shown])
    images, captions = [], []
    for row in rows:
        picture = decode(storage.read_bytes(test.paths[row]), _MAX_PIXELS)
        truth, found = test.truths[row], detections[row]
        shown = found.scores >= SHOWN_FROM
        names = [test.class_names[label] for label in truth.labels]
        labels = [
            f"{test.class_names[label]} {score:.2f}" for label, score in zip(found.labels[shown], found.scores[shown].tolist(), strict=True)
        ]
        images.append(
            [
                _drawn(picture, truth.boxes, truth.labels, names),
                _drawn(picture, found.boxes[shown], found.labels[shown], labels),
            ]
        )
        captions.append([f"{storage.name_of(test.paths[row])}: {len(names)} boxes", f"{len(labels)} found"])
    return image_grid(images, ["true", f"found (score {SHOWN_FROM} and above)"], captions, _CELL_PX)


def _drawn(picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(S, S, 3) uint8: the image with its boxes, fitted into a white square at its lower edge, near the caption."""
    scale = _CELL_PX / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", (_CELL_PX, _CELL_PX), (255, 255, 255))
    top = _CELL_PX - height
    canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (0, top))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(9)
    for box, label, text in zip(boxes * scale + [0, top, 0, top], labels.tolist(), texts, strict=True):
        color = _COLORS[label % len(_COLORS)]
        draw.rectangle(box.tolist(), outline=color, width=2)
        draw.text((box[0] + 3, box[1] + 1), text, color, font)
    return np.asarray(canvas)


def history_picture(entries: Sequence[dict[str, float]], y_title: str) -> bytes:
    """The logged values over the steps, one line per value."""
    names = [name for name in entries[0] if name != "step"]
    return curves([entry["step"] for entry in entries], {name: [entry[name] for entry in entries] for name in names}, "step", y_title)
