from pathlib import Path

import numpy as np

from ray_sassl.data import GROUP_ROWS, DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups


def _touch(root: Path, *names: str) -> Index:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return build_index(DataConfig(path=str(root)))


def test_subfolders_are_classes_in_alphabetical_order(tmp_path: Path):
    index = _touch(tmp_path, "dog/1.jpg", "cat/deep/2.PNG", "cat/1.webp", "dog/notes.txt", "dog/.3.jpg")
    rows = read_groups(index, [0])
    assert index.class_names == ("cat", "dog")
    labels = {Path(key).name: label for key, label in zip(rows.key, rows.label.tolist(), strict=True)}
    assert labels == {"1.webp": 0, "2.PNG": 0, "1.jpg": 1}
    assert sorted(rows.encoded) == [b"cat/1.webp", b"cat/deep/2.PNG", b"dog/1.jpg"]
    assert index.ignored == {"hidden": 1, "txt": 1}


def test_images_outside_the_folders_mean_that_there_are_no_classes(tmp_path: Path):
    index = _touch(tmp_path, "dog/1.jpg", "2.jpg")
    assert index.class_names == ()
    assert read_groups(index, [0]).label.tolist() == [-1, -1]


def test_a_glob_over_class_folders_keeps_the_classes(tmp_path: Path):
    _touch(tmp_path, "dog/1.jpg", "cat/2.jpg")
    index = build_index(DataConfig(path=str(tmp_path / "*" / "*.jpg")))
    assert index.class_names == ("cat", "dog")


def test_labels_can_be_left_out(tmp_path: Path):
    _touch(tmp_path, "dog/1.jpg")
    index = build_index(DataConfig(path=str(tmp_path), label_column=None))
    assert read_groups(index, [0]).label.tolist() == [-1]


def test_runs_of_files_are_row_groups_and_keep_their_numbers(tmp_path: Path):
    index = _touch(tmp_path, *(f"{number:04d}.jpg" for number in range(GROUP_ROWS + 3)))
    assert index.group_rows.tolist() == [GROUP_ROWS, 3]
    rows = read_groups(index, [1])
    assert rows.sample_id.tolist() == [GROUP_ROWS, GROUP_ROWS + 1, GROUP_ROWS + 2]
    assert rows.encoded == [Path(index.file_path(file)).name.encode() for file in range(GROUP_ROWS, GROUP_ROWS + 3)]


def test_classes_are_mixed_and_a_copy_elsewhere_has_the_same_order(tmp_path: Path):
    names = [f"{label}/{number:04d}.jpg" for label in ("cat", "dog", "owl", "rat") for number in range(GROUP_ROWS)]
    one, other = _touch(tmp_path / "one", *names), _touch(tmp_path / "other" / "place", *names)
    for group in range(one.num_groups):
        rows = read_groups(one, [group])
        counts = np.bincount(rows.label, minlength=4)
        assert counts.min() > GROUP_ROWS / 8, "of a class a quarter, give or take"
        assert rows.encoded == read_groups(other, [group]).encoded


def test_a_file_that_is_gone_or_empty_is_a_bad_row(tmp_path: Path):
    index = _touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").write_bytes(b"")
    rows = read_groups(index, [0])
    found = {Path(key).name: (image, int(id_)) for key, image, id_ in zip(rows.key, rows.encoded, rows.sample_id, strict=True)}
    (gone, _), (empty, id_), (good, _) = (found[name] for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert isinstance(gone, BadRow)
    assert "cannot be read" in gone.reason
    assert empty == BadRow(str(tmp_path / "b.jpg"), 0, id_, "the file is empty")
    assert good == b"c.jpg"
