"""Corruptions of real images: clean at severity 0, worse with each severity, the same wherever an image is corrupted."""

import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sassl.evaluation.corruptions import CORRUPTIONS, Corrupted, _plasma

each_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


def _read(path: Path, num: int, size_px: int) -> np.ndarray:
    encoded = pq.ParquetFile(path).read_row_group(0, ["image"])["image"].to_pylist()[:num]
    return np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize((size_px, size_px))) for image in encoded])


@pytest.fixture(scope="module")
def small(shared_dir: Path) -> np.ndarray:
    return _read(shared_dir / "data/cifar10/test-00000.parquet", 60, 32)


@pytest.fixture(scope="module")
def large(shared_dir: Path) -> np.ndarray:
    return _read(shared_dir / "data/imagenet-sample/parquet/train-00000.parquet", 4, 224)


def _corrupt(name: str, severity: int, images: np.ndarray, seed: int = 0, ids: np.ndarray | None = None) -> np.ndarray:
    ids = np.arange(len(images)) if ids is None else ids
    return Corrupted(name, severity, seed).apply(images, np.zeros(len(images), np.int64), ids)


@each_corruption
def test_severity_0_leaves_images_as_they_are(name, small):
    np.testing.assert_array_equal(_corrupt(name, 0, small), small)


@each_corruption
@pytest.mark.parametrize("size", ["small", "large"])
def test_pixels_move_further_with_every_severity(name, size, request):
    images = request.getfixturevalue(size)
    distance = [np.abs(_corrupt(name, severity, images) - images.astype(np.float64)).mean() for severity in range(6)]
    assert distance[0] == 0
    # The constants are the authors': two pairs of neighboring severities (motion blur at 32 px, fog at 224 px) are all but equal.
    assert all(later > 0.98 * earlier for earlier, later in itertools.pairwise(distance))
    assert distance[5] > 1.15 * distance[1] > 1


@each_corruption
def test_an_image_is_corrupted_alike_in_any_batch_and_after_traveling(name, small):
    ids = 7 * np.arange(len(small)) + 3
    whole = _corrupt(name, 3, small, ids=ids)
    part = np.array([9, 2, 30])
    traveled = pickle.loads(pickle.dumps(Corrupted(name, 3, 0)))
    np.testing.assert_array_equal(traveled.apply(small[part], np.zeros(3, np.int64), ids[part]), whole[part])
    assert whole.dtype == np.uint8


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"])
def test_what_is_drawn_depends_on_the_seed_and_the_image(name, small):
    twins = np.stack([small[0], small[0]])
    assert (_corrupt(name, 5, twins)[0] != _corrupt(name, 5, twins)[1]).any()
    assert (_corrupt(name, 5, twins, seed=1) != _corrupt(name, 5, twins)).any()


def test_keys_tell_corruptions_apart():
    changes = [Corrupted(name, severity, seed) for name in CORRUPTIONS for severity in (1, 2) for seed in (0, 1)]
    assert len({change.key for change in changes}) == len(changes)


def test_noise_has_the_stated_strength():
    gray = np.full((20, 32, 32, 3), 128, np.uint8)
    noise = (_corrupt("gaussian_noise", 5, gray) - 128.0) / 255
    assert noise.std() == pytest.approx(0.10, rel=0.02)
    photons = _corrupt("shot_noise", 5, gray) / 255
    assert photons.std() == pytest.approx(np.sqrt(128 / 255 / 50), rel=0.02)  # a count of mean n has deviation sqrt(n)
    changed = _corrupt("impulse_noise", 5, gray)
    assert np.isin(changed, (0, 128, 255)).all()
    assert (changed != 128).mean() == pytest.approx(0.07, rel=0.05)


def test_blurs_and_contrast_keep_a_flat_image_flat():
    flat = np.full((2, 32, 32, 3), 77, np.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"):
        np.testing.assert_array_equal(_corrupt(name, 5, flat), flat, err_msg=name)


def test_contrast_scales_the_deviation(small):
    # Where nothing is clipped: gray levels around the middle.
    images = (96 + small // 4).astype(np.uint8)
    ratio = _corrupt("contrast", 2, images).std((1, 2)) / images.std((1, 2))
    np.testing.assert_allclose(ratio, 0.5, atol=0.02)


def test_brightness_raises_the_largest_channel_and_keeps_the_hue():
    image = np.full((1, 8, 8, 3), (100, 50, 25), np.uint8)
    np.testing.assert_allclose(_corrupt("brightness", 2, image)[0, 0, 0], np.array((100, 50, 25)) * (100 + 25.5) / 100, atol=1)


def test_clouds_fill_their_range_and_have_no_seam():
    clouds = _plasma(64, 2.0, np.random.default_rng(0))
    assert clouds.min() == 0
    assert clouds.max() == 1
    within, across = np.abs(np.diff(clouds, axis=0)).mean(), np.abs(clouds[0] - clouds[-1]).mean()
    assert across < 2 * within
