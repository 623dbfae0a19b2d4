"""Which library decodes and resizes fastest, and how far its pixels are from Pillow's: the reasons for `data/jpeg.py` and `vectorized.py`.

    pip install PyTurboJPEG kornia-rs; python -m benchmarks.pixel_libraries [--data ../shared/data]

A library that is not installed is left out. All run in one process with one thread; rounds are interleaved, and the medians of CPU time are
printed as multiples of Pillow's speed. Crops are SimCLR's of ImageNet's sample at 224 px.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import write_results
from benchmarks.views import CASES
from ray_sassl.data.decode import open_image
from ray_sassl.data.jpeg import jpeg_pixels
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import Interpolation, ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import simclr

SIZE_PX, NUM_CROPS, MAX_PIXELS = 224, 48, 1 << 26
NUM_DECODED = {"32 px": 256, "224 px": 24, "224 px of photographs": 9, "224 px of 12 megapixels": 1}
Decoder = Callable[[bytes], np.ndarray]
Resizer = Callable[[np.ndarray, str], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    images = {case.name: case.load(args.data, NUM_DECODED[case.name]) for case in CASES}
    found = {f"decode, {name}": decoding(encoded, args.rounds) for name, encoded in images.items()}
    sample = next(case for case in CASES if case.name == "224 px").load(args.data, NUM_CROPS)
    for interpolation in ("bilinear", "bicubic"):
        found[f"crop, {interpolation}"] = cropping(sample, interpolation, args.rounds)
    for title, lines in found.items():
        table = Table("library", "times Pillow's speed", "levels apart, most", "mean", title=title)
        for name, (speed, most, mean) in lines.items():
            table.add_row(name, f"{speed:.2f}", str(most), f"{mean:.4f}")
        Console().print(table)
    print(f"written to {write_results('pixel_libraries', [], {'times Pillow, most and mean levels apart': found}, args.out)}")


def decoding(encoded: list[bytes], rounds: int) -> dict[str, tuple[float, int, float]]:
    """Speed and distance of each decoder to an array."""
    ways: dict[str, Decoder] = {"Pillow": _pillow, "simplejpeg": _simplejpeg, "OpenCV": _opencv} | _turbojpeg()
    return compared({name: lambda way=way: [way(file) for file in encoded] for name, way in ways.items()}, rounds)


def cropping(encoded: list[bytes], interpolation: Interpolation, rounds: int) -> dict[str, tuple[float, int, float]]:
    """Speed and distance of each way to cut and resize the crops."""
    images = [open_image(file, MAX_PIXELS).pixels()[0] for file in encoded]
    in_pillow = [Image.fromarray(image) for image in images]
    params = draw(simclr(SIZE_PX).left, np.array([image.size for image in in_pillow]), DrawKey(0, 0, np.arange(len(images))))
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    size = (SIZE_PX, SIZE_PX)

    def pillow(image: Image.Image, box: tuple[int, int, int, int], gap: float | None = None) -> np.ndarray:
        return np.asarray(image.crop(box).resize(size, kind, reducing_gap=gap))

    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        "Pillow": lambda: _flipped([pillow(image, box) for image, box in zip(in_pillow, _boxes(params), strict=True)], params),
        "Pillow, box=": lambda: _flipped(
            [np.asarray(image.resize(size, kind, box)) for image, box in zip(in_pillow, _boxes(params), strict=True)], params
        ),
        "Pillow, reducing_gap=2": lambda: _flipped(
            [pillow(image, box, 2.0) for image, box in zip(in_pillow, _boxes(params), strict=True)], params
        ),
        "cykooz-resizer, as `fast`": lambda: list(crop(images, params, SIZE_PX, interpolation)),
    }
    flag = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_CUBIC
    others: dict[str, Resizer] = {
        "OpenCV": lambda part, _: cv2.resize(part, size, interpolation=flag),
        "OpenCV, area": lambda part, _: cv2.resize(part, size, interpolation=cv2.INTER_AREA),
    } | _kornia()
    for name, resize in others.items():
        ways[name] = lambda resize=resize: _flipped(
            [
                resize(image[top:bottom, left:right], interpolation)
                for image, (left, top, right, bottom) in zip(images, _boxes(params), strict=True)
            ],
            params,
        )
    return compared(ways, rounds)


def compared(ways: dict[str, Callable[[], list[np.ndarray]]], rounds: int) -> dict[str, tuple[float, int, float]]:
    """How many times as fast as the first way each is, and how far its levels are from that one's: the most, and the mean."""
    results = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    first = next(iter(ways))
    found = {}
    for name, result in results.items():
        apart = [np.abs(mine.astype(int) - theirs.astype(int)) for mine, theirs in zip(result, results[first], strict=True)]
        speed = statistics.median(theirs / mine for theirs, mine in zip(seconds[first], seconds[name], strict=True))
        found[name] = (speed, int(max(image.max() for image in apart)), float(np.mean([image.mean() for image in apart])))
    return found


def _boxes(params: ViewParams) -> list[tuple[int, int, int, int]]:
    edges = (params.left, params.top, params.left + params.width, params.top + params.height)
    return list(zip(*(edge.tolist() for edge in edges), strict=True))


def _flipped(views: list[np.ndarray], params: ViewParams) -> list[np.ndarray]:
    return [cv2.flip(view, 1) if flip else np.array(view) for view, flip in zip(views, params.flip.tolist(), strict=True)]


def _pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded), formats=["JPEG"]).convert("RGB"))


def _simplejpeg(encoded: bytes) -> np.ndarray:
    pixels = jpeg_pixels(encoded, open_image(encoded, MAX_PIXELS).size)
    assert pixels is not None
    return pixels


def _opencv(encoded: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None
    return pixels


def _turbojpeg() -> dict[str, Decoder]:
    try:
        module = importlib.import_module("turbojpeg")
        decoder = module.TurboJPEG()
    except (ImportError, RuntimeError, OSError):  # it comes without the library itself
        return {}
    return {"PyTurboJPEG": lambda encoded: decoder.decode(encoded, pixel_format=module.TJPF_RGB)}


def _kornia() -> dict[str, Resizer]:
    try:
        module = importlib.import_module("kornia_rs")
    except ImportError:
        return {}
    size = (SIZE_PX, SIZE_PX)
    return {"kornia-rs": lambda part, interpolation: module.imgproc.resize(np.ascontiguousarray(part), size, interpolation, antialias=True)}


if __name__ == "__main__":
    main()
