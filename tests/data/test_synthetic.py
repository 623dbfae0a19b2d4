import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.decode import decode_rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import all_labels, build_index, read_groups
from ray_sassl.data.synthetic import CLASSES, NUM_PALETTES, NUM_TEST, NUM_TRAIN, SIZE_PX, TEXTURES, ensure_synthetic, make_images
from ray_sassl.files.own import MARKER


@pytest.fixture(scope="module")
def small() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return make_images(2000, split=0)


def test_both_splits_are_read_by_name_with_balanced_labels():
    train, test = (build_index(DataConfig(path=path)) for path in ("synthetic", "synthetic:test"))
    assert (train.num_rows, test.num_rows) == (NUM_TRAIN, NUM_TEST)
    for index in (train, test):
        counts = np.bincount(all_labels(index))
        assert len(counts) == len(CLASSES)
        assert np.ptp(counts) <= 1
    images = decode_rows(read_groups(test, [0]), 10**6, lambda image: image)
    assert all(not isinstance(image, BadRow) and image.size == (SIZE_PX, SIZE_PX) for image in images)


def test_it_is_made_once_and_leaves_nothing_else_in_the_cache():
    folder = ensure_synthetic()
    made = folder.stat().st_mtime_ns
    assert ensure_synthetic() == folder
    assert folder.stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".synthetic")] == []


def test_the_same_arguments_give_the_same_images_and_the_splits_differ():
    one, other, test = make_images(40, 0), make_images(40, 0), make_images(40, 1)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0], test[0])


def test_style_says_nothing_about_content(small: tuple[np.ndarray, ...]):
    _, label, palette, texture = small
    for style, num_styles in ((palette, NUM_PALETTES), (texture, len(TEXTURES))):
        table = np.zeros((len(CLASSES), num_styles))
        np.add.at(table, (label, style), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (len(CLASSES) - 1) * (num_styles - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_neighbors_in_pixel_space_share_their_palette_and_not_their_shape(small: tuple[np.ndarray, ...]):
    images, label, palette, _ = small
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    queries = slice(0, 300)
    squares = (pixels**2).sum(1)
    distance = squares[queries, None] - 2 * pixels[queries] @ pixels.T + squares
    distance[np.arange(300), np.arange(300)] = np.inf
    nearest = distance.argmin(1)
    same_palette, same_shape = (palette[nearest] == palette[queries]).mean(), (label[nearest] == label[queries]).mean()
    assert same_palette > 0.4, "chance is 0.03"
    assert same_shape < same_palette - 0.1, "chance is 0.1"


def test_every_shape_stands_out_from_its_ground(small: tuple[np.ndarray, ...]):
    images, _, _, texture = small
    flat = images[texture == TEXTURES.index("flat")].astype(float)
    contrast = np.quantile(flat, 0.97, axis=(1, 2)) - np.quantile(flat, 0.03, axis=(1, 2))
    assert (contrast.max(1) > 50).all()


def test_two_processes_may_make_it_at_once(tmp_path: Path):
    code = (
        "import os, sys; os.environ['RAY_SASSL_CACHE'] = sys.argv[1]\n"
        "from ray_sassl.data import synthetic\n"
        "synthetic.NUM_TRAIN, synthetic.NUM_TEST = 64, 16\n"
        "print(synthetic.ensure_synthetic())"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert {str(path) for path in tmp_path.iterdir()} == folders | {str(tmp_path / MARKER)}
