"""Data in PASCAL VOC's form: what is read, what is dropped and counted, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from ray_sassl.evaluation.detection.voc import read_voc
from ray_sassl.process.errors import UsageError
from tests.evaluation.detection.conftest import write_data, write_example


def test_the_blood_cells_are_read_without_their_two_boxes_of_no_area(shared_dir):
    folder = shared_dir / "data/transfer/bccd"
    train, test = read_voc(str(folder), (), ())
    assert (len(train), len(test)) == (292, 72)
    assert train.class_names == test.class_names == ("Platelets", "RBC", "WBC")
    assert train.num_boxes + test.num_boxes == 4888 - 2
    assert train.num_dropped + test.num_dropped == 2
    both = [*train.truths, *test.truths]
    counts = np.bincount(np.concatenate([truth.labels for truth in both]))
    assert counts.tolist() == [361, 4155 - 2, 372]
    for truth in both:
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
        assert (truth.boxes >= 0).all()
        assert (truth.boxes[:, 2] <= 640).all()
        assert (truth.boxes[:, 3] <= 480).all()


def test_edges_count_from_0_and_what_reaches_out_of_the_image_is_cut(tmp_path):
    objects = [("a", (1, 1, 10, 20), 0), ("b", (50, 40, 90, 60), 1), ("a", (5, 5, 5, 9), 0), ("a", (70, 3, 80, 9), 0)]
    write_example(tmp_path, "one", objects)
    write_example(tmp_path, "two", [("a", (2, 3, 4, 5), 0)])
    for split, name in (("trainval", "one"), ("test", "two")):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(f"{name}  1\n")
    train, test = read_voc(str(tmp_path), (), ())
    assert train.truths[0].boxes.tolist() == [[0, 0, 10, 20], [49, 39, 64, 48]]
    assert train.truths[0].labels.tolist() == [0, 1]
    assert train.truths[0].is_difficult.tolist() == [False, True]
    assert train.num_dropped == 2  # one of no width, one outside of the image
    assert test.truths[0].boxes.tolist() == [[1, 2, 4, 5]]


def test_the_years_of_voc_are_found_and_joined(tmp_path):
    write_data(tmp_path / "VOC2007", 5, 3)
    write_data(tmp_path / "VOC2012", 4, 1, prefix="b")
    train, test = read_voc(str(tmp_path), (), ())
    assert (len(train), len(test)) == (9, 3)
    other, _ = read_voc(str(tmp_path), ("VOC2012/trainval",), ("VOC2012/test",))
    assert len(other) == 4
    assert other.fingerprint != train.fingerprint


def test_an_image_without_objects_is_taken(tmp_path):
    write_data(tmp_path, 6, 1)
    write_example(tmp_path, "empty", [])
    with (tmp_path / "ImageSets/Main/trainval.txt").open("a") as file:
        file.write("empty\n")
    train, _ = read_voc(str(tmp_path), (), ())
    assert train.truths[6].boxes.shape == (0, 4)


def _change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "ImageSets/Main/test.txt").unlink(), "has no split 'test'.*It has: trainval"),
        (lambda folder: (folder / "ImageSets/Main/test.txt").write_text("\n"), "is empty"),
        (lambda folder: (folder / "ImageSets/Main/test.txt").write_text("nobody\n"), "lists nobody, and JPEGImages has no nobody.jpg"),
        (lambda folder: (folder / "ImageSets/Main/test.txt").write_text("trainval0\n"), "1 images are in the train and in the test split"),
        (lambda folder: (folder / "Annotations/test0.xml").unlink(), "Annotations has no test0.xml"),
        (lambda folder: (folder / "Annotations/test0.xml").write_text("<annotation>"), r"test0.xml is damaged"),
        (lambda folder: _change(folder / "Annotations/test0.xml", "<xmin>", "<xmin>x"), "<bndbox/xmin> should be a number and is 'x"),
        (lambda folder: _change(folder / "Annotations/test0.xml", "xmin", "left"), "<bndbox/xmin> is missing"),
        (lambda folder: write_example(folder, "test0", [("owl", (2, 2, 9, 9), 0)]), "boxes of owl, and the train split has none"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, message):
    write_data(tmp_path, 3, 1)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        read_voc(str(tmp_path), (), ())


def test_another_folder_is_answered_with_the_form(tmp_path):
    with pytest.raises(UsageError, match="is not a folder, or it is empty"):
        read_voc(str(tmp_path / "nowhere"), (), ())
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match=r"not of PASCAL VOC's form: .* only images"):
        read_voc(str(tmp_path), (), ())
