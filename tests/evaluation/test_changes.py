"""Changes of images: keyed by the image, whatever the batch."""

import io
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.evaluation.changes import Augmented, Stylized, Textures, textures_of
from ray_sassl.process.errors import UsageError
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.style.stylizers.swift import Config as Swift

COLORS = ColorStatistics()


def _images(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, 32, 32, 3), np.uint8), np.arange(num) % 3, np.arange(num) * 7


def _textures() -> Textures:
    rng = np.random.default_rng(1)
    codes = np.concatenate([rng.uniform(0.2, 0.8, (9, 3)), np.tile([0.02, 0, 0, 0.02, 0, 0.02], (9, 1))], 1).astype(np.float32)
    return Textures(codes, np.arange(9) % 3, "nine")


@pytest.mark.parametrize("change", [Augmented(0, 0), Stylized(COLORS, _textures(), 0), Stylized(COLORS, _textures(), 0, other_class=True)])
def test_an_image_is_changed_alike_in_any_batch_and_after_traveling(change):
    images, labels, ids = _images(10)
    whole = change.apply(images, labels, ids)
    part = np.array([7, 2, 3])
    traveled = pickle.loads(pickle.dumps(change))
    np.testing.assert_array_equal(traveled.apply(images[part], labels[part], ids[part]), whole[part])
    assert traveled.key == change.key
    assert whole.shape == images.shape
    assert whole.dtype == np.uint8
    assert (whole != images).any((1, 2, 3)).all()


def test_keys_tell_changes_apart():
    other = Textures(_textures().codes + 0.01, _textures().labels, "nine")
    changes = [
        *(Augmented(seed, number) for seed in (0, 1) for number in (0, 1)),
        *(Stylized(COLORS, _textures(), 0, number, other_class) for number in (0, 1) for other_class in (False, True)),
        Stylized(COLORS, other, 0),
        Stylized(COLORS, _textures(), 0, render_px=128),
        Stylized(COLORS, _textures(), 1),
        Stylized(ColorStatistics(regularization=1e-3), _textures(), 0),
    ]
    assert len({change.key for change in changes}) == len(changes)


def test_an_image_gets_its_styles_colors():
    images, labels, ids = _images(6)
    change = Stylized(COLORS, _textures(), 0)
    means = change.apply(images, labels, ids).mean((1, 2)) / 255
    np.testing.assert_allclose(means, _textures().codes[change.styles(labels, ids), :3], atol=0.02)


def test_small_images_keep_their_shape_when_they_are_stylized_enlarged(shared_dir):
    encoded = pq.ParquetFile(shared_dir / "data/cifar10/test-00000.parquet").read_row_group(0, ["image"])["image"].to_pylist()[:16]
    images = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in encoded])
    stylizer = Swift().build(torch.device("cpu"))
    styles = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    textures = Textures(stylizer.embed(styles).detach().numpy(), np.arange(16), "sixteen")

    def likeness(render_px: int) -> float:
        stylized = Stylized(Swift(), textures, 0, other_class=True, render_px=render_px).apply(images, np.arange(16), np.arange(16))
        assert stylized.shape == images.shape
        edges = [np.abs(np.diff(part.mean(3), axis=2)).reshape(16, -1) for part in (images.astype(float), stylized.astype(float))]
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*edges, strict=True)]))

    assert likeness(128) > 2 * likeness(0)
    assert likeness(128) > 0.4


def test_conflicting_styles_are_never_of_the_images_own_class():
    labels, ids = np.arange(600) % 3, np.arange(600)
    styles = Stylized(COLORS, _textures(), 0, other_class=True).styles(labels, ids)
    assert (_textures().labels[styles] != labels).all()
    assert len(np.unique(styles)) == 9
    free = Stylized(COLORS, _textures(), 0).styles(labels, ids)
    assert (_textures().labels[free] == labels).any()


def test_styles_of_only_one_class_cannot_conflict_with_it():
    alone = Textures(_textures().codes, np.zeros(9, np.int64), "nine")
    with pytest.raises(UsageError, match="all styles are of class 0"):
        Stylized(COLORS, alone, 0, other_class=True).styles(np.array([0]), np.array([1]))


def test_textures_come_from_some_train_images_of_each_class(subject):
    textures = textures_of(subject, subject.features("train"), COLORS, 4, 0, None)
    assert np.bincount(textures.labels).tolist() == [4, 4, 4]
    brightest = textures.codes[:, :3].argmax(1)
    assert (brightest == textures.labels).all()  # each class has a color of its own


def test_textures_may_come_from_a_bank_of_the_same_stylizer(subject, tmp_path):
    bank = str(tmp_path / "bank.safetensors")
    StyleBank.of(_textures().codes, [str(number) for number in range(9)], "color_statistics-v1").save(bank)
    textures = textures_of(subject, subject.features("train"), COLORS, 4, 0, bank)
    np.testing.assert_array_equal(textures.codes, _textures().codes)
    assert (textures.labels == -1).all()
    with pytest.raises(UsageError):
        textures_of(subject, subject.features("train"), Swift(), 4, 0, bank)
