"""What folders from elsewhere hold: links to nothing and in loops, odd names, numbers for classes, files replaced by older ones."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import all_labels, build_index, read_groups
from ray_sassl.data.sources import find_sources
from ray_sassl.evaluation.datasets import check_same_names
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from tests.flaky_store import s3_options, s3_server

Make = Callable[[str], Path]


def _index(path: Path | str) -> Index:
    return build_index(DataConfig(path=str(path)))


def test_links_to_nothing_are_counted_and_three_are_named(field: Make, caplog: pytest.LogCaptureFixture):
    index = _index(field("dangling_links"))
    assert (index.num_rows, index.ignored) == (12, {"links to nothing": 24})
    assert (
        "24 files are left out: 24 links to nothing (class00/annexed0.jpg, class00/annexed1.jpg, class00/annexed2.jpg, ...)" in caplog.text
    )


@pytest.mark.parametrize(("name", "num_links"), [("one_link_loop", 1), ("two_link_loops", 2)])
def test_links_in_a_loop_end_and_make_no_copies(name: str, num_links: int, field: Make):
    index = _index(field(name))
    assert (index.num_rows, index.ignored) == (1, {"links to what is there already": num_links})


def test_links_lead_to_each_file_once_and_hard_links_are_files(build: ModuleType, tmp_path: Path):
    build.flat(tmp_path / "elsewhere", 3)
    build.flat(tmp_path / "photos" / "real", 2)
    photos = tmp_path / "photos"
    (photos / "a_first").symlink_to(tmp_path / "elsewhere")
    (photos / "b_again").symlink_to(tmp_path / "elsewhere")
    (photos / "one.jpg").symlink_to(tmp_path / "elsewhere" / "0000.jpg")
    (photos / "c_real").symlink_to("real")
    os.link(photos / "real" / "0000.jpg", photos / "real" / "hard.jpg")
    found = {str(Path(file.entry.path).relative_to(photos)) for file in find_sources(DataConfig(path=str(photos))).files}
    assert {"real/0000.jpg", "real/0001.jpg", "real/hard.jpg"} <= found
    assert len(found) == 6
    assert find_sources(DataConfig(path=str(photos))).ignored == {"links to what is there already": 3}


def test_names_that_are_not_utf_8_are_left_out_and_named(field: Make, caplog: pytest.LogCaptureFixture):
    index = _index(field("latin1_file"))
    assert (index.num_rows, index.ignored) == (4, {"names that are not UTF-8": 1})
    assert r"caf\xe9.jpg" in caplog.text


def test_images_of_other_kinds_are_named_and_other_files_counted(build: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    build.flat(tmp_path, 2)
    for name in ("x.gif", "y.TIFF", "notes.txt"):
        (tmp_path / name).touch()
    assert _index(tmp_path).ignored == {"gif": 1, "tiff": 1, "txt": 1}
    assert "2 files are left out: 1 .gif (x.gif); 1 .tiff (y.TIFF)" in caplog.text


def test_a_question_mark_is_part_of_a_name_on_disk(field: Make):
    folder = field("question_marks")
    index = _index(folder / "what?")
    assert (index.class_names, index.num_rows) == (("class00", "class01", "class02"), 12)
    assert all(isinstance(row, bytes) for row in read_groups(index, [0]).encoded)
    names = {Path(file.entry.path).name for file in find_sources(DataConfig(path=str(folder / "flat"))).files}
    assert {f"really?{number}.jpg" for number in range(4)} < names


@pytest.mark.slow
def test_a_question_mark_is_part_of_a_key_on_an_object_store(build: ModuleType):
    with s3_server() as server:
        root = f"s3://bucket/what?{s3_options(server)}"
        for name in ("cat/really?0.jpg", "cat/a?b=c.jpg", "dog/x.jpg"):
            storage.write_bytes(storage.join(root, name), build.photo())
        index = _index(root)
        assert (index.class_names, index.num_rows) == (("cat", "dog"), 3)
        rows = read_groups(index, [0])
        assert rows.encoded == [build.photo()] * 3
        assert {storage.name_of(path) for path in rows.path} == {"really?0.jpg", "a?b=c.jpg", "x.jpg"}


@pytest.mark.parametrize(
    ("uri", "name", "joined"),
    [
        ("s3://b/f?region=x", "really?0.jpg", "s3://b/f/really?0.jpg?region=x"),
        ("s3://b/f", "really?0.jpg", "s3://b/f/really?0.jpg"),
        ("s3://b/f", "a?b=c", "s3://b/f/a?b=c?"),
        ("s3://b/what?", "x.jpg", "s3://b/what/x.jpg?"),
    ],
)
def test_a_uri_keeps_its_options_and_its_names(uri: str, name: str, joined: str):
    assert storage.join(uri, name) == joined
    assert storage.name_of(joined) == name
    assert storage.parent(joined) == storage.without_options(uri) + joined.removeprefix(storage.without_options(joined))


def test_numbered_folders_have_their_numbers_for_labels(field: Make):
    folder = field("numbered_classes")
    index = _index(folder / "folders")
    assert index.class_names == tuple(str(number) for number in range(12))
    rows = read_groups(index, [0])
    assert [int(Path(path).parent.name) for path in rows.path] == rows.label.tolist()
    assert sorted(set(all_labels(_index(folder / "rows.parquet")).tolist())) == list(range(12))


def test_names_that_are_not_all_numbers_are_sorted_as_text(build: ModuleType, tmp_path: Path):
    for name in ("10", "9", "x"):
        build.flat(tmp_path / name, 1)
    assert _index(tmp_path).class_names == ("10", "9", "x")


def test_a_shard_that_is_replaced_by_an_older_one_of_its_size_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([np.random.default_rng(0).bytes(50) for _ in range(4)], pa.binary()), "label": [0, 1, 2, 3]})
    pq.write_table(table, path)
    index = _index(path)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**12))
    with pytest.raises(UsageError, match="has changed since the index was built"):
        read_groups(index, [0])


def test_folders_of_operating_systems_are_no_classes(build: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    build.classes(tmp_path, range(2), 2)
    for name in ("__MACOSX/class00/a.jpg", "@eaDir/b.jpg", "class00/@eaDir/c.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/d.jpg"):
        build.put(tmp_path / name, build.photo())
    index = _index(tmp_path)
    assert (index.num_rows, index.class_names) == (4, ("class00", "class01"))
    assert "4 files are left out: 4 hidden ($RECYCLE.BIN/d.jpg, @eaDir/b.jpg, __MACOSX/class00/a.jpg, ...)" in caplog.text


def test_classes_that_people_read_as_the_same_are_said(build: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("Cat", "cat", "caf\u00e9", "cafe\u0301", "dog"):
        build.put(tmp_path / "one" / name / "a.jpg", build.photo())
    index = _index(tmp_path / "one")
    assert len(index.class_names) == 5
    assert "differ only in case, spaces or the form of their Unicode: 'Cat', 'cat'; 'cafe\\u0301', 'caf\\xe9'" in caplog.text
    build.put(tmp_path / "decomposed" / "cafe\u0301" / "a.jpg", build.photo())
    build.put(tmp_path / "composed" / "caf\u00e9" / "a.jpg", build.photo())
    with pytest.raises(UsageError, match=r"differ only in case, spaces or Unicode form: 'cafe\\u0301', 'caf\\xe9'"):
        check_same_names(_index(tmp_path / "decomposed"), _index(tmp_path / "composed"))


def test_a_file_that_the_disk_cannot_read_is_a_bad_row(build: ModuleType, tmp_path: Path):
    build.flat(tmp_path, 2)
    index = _index(tmp_path)
    (tmp_path / "0000.jpg").unlink()
    (tmp_path / "0000.jpg").symlink_to("/proc/self/mem")  # which cannot be read from its beginning
    rows = read_groups(index, [0])
    (reason,) = [image.reason for image in rows.encoded if isinstance(image, BadRow)]
    assert reason.startswith("the file cannot be read")
