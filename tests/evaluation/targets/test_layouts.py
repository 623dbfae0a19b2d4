import hashlib
from pathlib import Path

import numpy as np
import pytest

from ray_sassl.evaluation.targets import layouts
from ray_sassl.process.errors import UsageError
from tests.evaluation.targets.conftest import WRITERS, Written, dtd, put_image


def test_every_card_has_a_layout_that_the_tests_write():
    from ray_sassl.evaluation.targets.cards import CARDS

    assert sorted(card.name for card in CARDS) == sorted(WRITERS)


def test_each_split_is_read_with_its_labels_names_and_bytes(written: Written):
    for half, expected in (("train", written.train), ("test", written.test)):
        samples = written.card.read(written.folder, half, False)
        assert len(samples.labels) == written.card.num_images(half)
        assert sorted(set(samples.labels)) == list(range(written.card.num_classes))
        if samples.class_names:
            assert len(samples.class_names) == written.card.num_classes
        found = [samples.read(place) for place in range(len(samples.labels))]
        assert all(content[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG") for content, _ in found)
        if expected:
            assert {name: label for (_, name), label in zip(found, samples.labels, strict=True)} == expected
        files = {hashlib.sha256(path.read_bytes()).hexdigest() for path in written.folder.rglob("*.jp*g")}
        files |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in written.folder.rglob("*.JPEG")}
        if files:
            assert {hashlib.sha256(content).hexdigest() for content, _ in found} <= files


def test_no_image_is_in_both_splits_of_caltech_and_the_draw_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    WRITERS["caltech101"](tmp_path, monkeypatch)
    train, again, test = (layouts.caltech101(tmp_path, half, False) for half in ("train", "train", "test"))
    assert np.bincount(train.labels).tolist() == [30, 30, 30]
    assert np.bincount(test.labels).tolist() == [1, 3, 2]
    named = [{(label, samples.read(place)[1]) for place, label in enumerate(samples.labels)} for samples in (train, again, test)]
    assert named[0] == named[1]
    assert not named[0] & named[2]
    assert len(named[0] | named[2]) == 96


def test_cifars_pixels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import io

    from PIL import Image
    from torchvision.datasets import CIFAR10

    WRITERS["cifar10"](tmp_path, monkeypatch)
    content = layouts.cifar10(tmp_path, "test", False).read(1)[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), CIFAR10(tmp_path, train=False).data[1])


def test_sun_without_its_partitions_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    WRITERS["sun397"](tmp_path, monkeypatch)
    (tmp_path / "Partitions" / "Training_01.txt").unlink()
    with pytest.raises(
        UsageError, match=r"Training_01.txt, the list of the train images, is missing.*unpack https://vision.princeton.edu/.*Partitions.zip"
    ):
        layouts.sun397(tmp_path, "train", False)
    (tmp_path / "Partitions" / "Training_01.txt").write_text("/z/zoo/sun_1.jpg\n")
    with pytest.raises(UsageError, match=r"names images of classes that ClassName.txt does not have, such as z/zoo"):
        layouts.sun397(tmp_path, "train", False)


def test_partitions_of_sun_other_than_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda url, root, name: (Path(root) / name).write_bytes(b"another"))
    with pytest.raises(UsageError, match=r"has the sha256 .* and should have e3311ea5.*; it was deleted"):
        layouts._download_partitions(tmp_path)
    assert not (tmp_path / "Partitions.zip").exists()


def test_the_list_of_imagenets_one_per_cent_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    WRITERS["imagenet_1percent"](tmp_path, monkeypatch)
    (tmp_path / "1percent.txt").write_text("n09999999_1.JPEG\n")
    with pytest.raises(UsageError, match=r"1percent.txt names n09999999_1.JPEG, and .* has no class n09999999"):
        layouts.imagenet_1percent(tmp_path, "train", False)
    (tmp_path / "1percent.txt").unlink()
    with pytest.raises(UsageError, match=r"1percent.txt is missing"):
        layouts.imagenet_1percent(tmp_path, "train", False)


def test_kaggles_tables_must_have_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    WRITERS["diabetic_retinopathy"](tmp_path, monkeypatch)
    (tmp_path / "retinopathy_solution.csv").write_text("image,level\na,1\n")
    with pytest.raises(UsageError, match="needs the columns image, level, Usage; it has image, level"):
        layouts.diabetic_retinopathy(tmp_path, "test", False)


def test_train_and_validation_images_of_dtd_are_both_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = dtd(tmp_path, monkeypatch)
    assert len(layouts.dtd(tmp_path, "train", False).labels) == 4
    assert small.card.num_train == 4
    put_image(tmp_path / "unused.jpg")
