"""What tar shards from elsewhere do: names with dots, members of other programs, names that are not UTF-8, and headers that lie."""

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.process.errors import UsageError

Make = Callable[[str], Path]


def _index(path: Path) -> Index:
    return build_index(DataConfig(path=str(path)))


def _rows(path: Path):
    index = _index(path)
    return index, read_groups(index, range(index.num_groups))


def test_names_with_dates_and_numbers_are_one_sample_each(field: Make):
    index, rows = _rows(field("dotted_members"))
    assert len(rows) == 20
    assert not [row for row in rows.encoded if isinstance(row, BadRow)]
    assert rows.label.tolist() == [number % 8 for number in range(20)]
    assert index.ignored == {}


def test_what_macos_adds_is_left_out_and_counted(field: Make):
    index, rows = _rows(field("apple_double_members"))
    assert len(rows) == 16
    assert not [row for row in rows.encoded if isinstance(row, BadRow)]
    assert set(rows.label.tolist()) == {1}
    assert index.ignored == {"AppleDouble (._*)": 32}


def test_names_that_are_not_utf_8_are_read(field: Make):
    _, rows = _rows(field("latin1_members"))
    assert len(rows) == 4
    assert rows.key[0].endswith(r"#\xe9t\xe90")


def test_labels_away_from_their_images_are_found(build: ModuleType, tmp_path: Path):
    images = [(f"{number}.jpg", build.photo(number)) for number in range(6)]
    labels = [(f"{number}.cls", b"%d" % number) for number in range(6)]
    for name, members in {"images first": [*images, *labels], "labels first": [*labels, *reversed(images)]}.items():
        build.tar(tmp_path / f"{name}.tar", members)
        index, rows = _rows(tmp_path / f"{name}.tar")
        assert {key.partition("#")[2]: label for key, label in zip(rows.key, rows.label.tolist(), strict=True)} == {
            str(n): n for n in range(6)
        }
        assert [row for row in rows.encoded if isinstance(row, BadRow)] == []
        assert index.ignored["members away from the rest of their sample (merged)"] >= 5


def test_two_images_of_one_name_share_its_label_and_no_image_vanishes_without_a_word(build: ModuleType, tmp_path: Path):
    build.tar(tmp_path / "pairs.tar", [("1.left.jpg", build.photo(0)), ("1.right.jpg", build.photo(1)), ("1.cls", b"7")])
    _, rows = _rows(tmp_path / "pairs.tar")
    assert (len(rows), rows.label.tolist()) == (2, [7, 7])
    build.tar(tmp_path / "twice.tar", [("1.jpg", build.photo(0)), ("1.png", build.photo(0, 0, "PNG"))])
    with pytest.raises(UsageError, match=r"1 of 2 images would be lost, .* \(1\.png\)\. Give each image its own name"):
        build_index(DataConfig(path=str(tmp_path / "twice.tar")))
    index = build_index(DataConfig(path=str(tmp_path / "twice.tar"), max_bad_fraction=0.5))
    assert (index.num_rows, index.ignored) == (1, {"further images of a sample": 1})
    assert index.left_out == "1 members of shards are left out or merged: 1 further images of a sample (twice.tar: 1.png)"


def _pax(build: ModuleType, record: bytes) -> bytes:
    return build.header(b"pax", b"%011o\0" % len(record), b"x") + record.ljust(512, b"\0") + build.header() + build.BODY + build.END


_HEADERS = {
    "negative pax size": lambda b: _pax(b, b"14 size=-1536\n"),
    "pax size of 5,000 digits": lambda b: _pax(b, b"5009 size=" + b"9" * 5000 + b"\n"),
    "pax length of zero": lambda b: _pax(b, b"0 size=10\n"),
    "pax length of 30 digits": lambda b: _pax(b, b"9" * 30 + b" size=10\n"),
    "pax size that is a word": lambda b: _pax(b, b"12 size=ten\n"),
    "huge member": lambda b: b.header(size=b"\x80\0\0\0" + (2**40).to_bytes(8, "big")) + b.END,
    "member larger than numbers go": lambda b: b.header(size=b"\xbf" + b"\xff" * 11) + b.END,
    "negative base 256": lambda b: b.header(size=b"\xff" * 12) + b.END,
    "size that is not octal": lambda b: b.header(size=b"9999999999\0") + b.END,
    "size with an underscore": lambda b: b.header(size=b"1_0\0") + b.END,
    "long name that is larger than the file": lambda b: b.header(b"././@LongLink", b"%011o\0" % 2**19, b"L") + b.END,
    "text": lambda b: b"all work and no play " * 100,
    "text with digits where the checksum stands": lambda b: b"9" * 2000,
    "empty": lambda b: b"",
}


@pytest.mark.parametrize("name", _HEADERS)
def test_a_wrong_header_is_reported_at_once_and_with_little_memory(name: str, build: ModuleType, tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(_HEADERS[name](build))
    build.tar(tmp_path / "good.tar", [("x.jpg", build.photo())])
    tracemalloc.start()
    try:
        index, rows = _rows(tmp_path)
        told = [problem.reason for problem in index.problems] + [str(row) for row in rows.encoded if isinstance(row, BadRow)]
        assert told
        assert build.photo() in rows.encoded
    except UsageError as error:
        told = [str(error)]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50e6
    assert any(word in " ".join(told) for word in ("damaged", "cut off", "not a tar file", "no image", "end mark", "bytes long"))


def test_a_shard_with_a_terabyte_of_zeros_behind_it_is_read_at_once_and_joined_shards_whole(build: ModuleType, tmp_path: Path):
    part = build.header() + build.BODY + build.END
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(part + bytes(3 * 2**20 + 512) + part)
    assert len(_rows(tmp_path / "a.tar")[1]) == 2
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(2**40)
    index, rows = _rows(tmp_path / "a.tar")
    assert sum(isinstance(row, bytes) for row in rows.encoded) == 2
    assert "MB of zeros follow byte" in index.problems[0].reason


def test_many_small_records_in_a_pax_header_are_read_once_each(build: ModuleType, tmp_path: Path):
    records = b"6 a=b\n" * 170_000
    header = build.header(b"pax", b"%011o\0" % len(records), b"x")
    (tmp_path / "a.tar").write_bytes(header + records + bytes(-len(records) % 512) + build.header() + build.BODY + build.END)
    _, rows = _rows(tmp_path / "a.tar")
    assert len(rows) == 1


def test_the_shards_of_this_project_are_still_what_python_reads(build: ModuleType, tmp_path: Path):
    build.tar(tmp_path / "a.tar", [member for n in range(5) for member in ((f"a/{n}.jpg", build.photo(n)), (f"a/{n}.cls", b"%d" % n))])
    _, rows = _rows(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        wanted = [tar.extractfile(f"a/{n}.jpg").read() for n in range(5)]  # pyright: ignore[reportOptionalMemberAccess]
    assert (rows.encoded, rows.label.tolist()) == (wanted, list(range(5)))


@pytest.mark.parametrize("kind", [b"V", b"D"])
def test_the_label_of_a_volume_and_a_listing_are_no_members(kind: bytes, build: ModuleType, tmp_path: Path):
    shard = tmp_path / "shard.tar"
    build.tar(shard, [("a.jpg", build.photo()), ("a.cls", b"1")])
    shard.write_bytes(bytes(build.header(b"backup", b"00000000003\0", kind)) + b"abc".ljust(512, b"\0") + shard.read_bytes())
    assert build_index(DataConfig(path=str(shard))).num_rows == 1


def test_a_sparse_file_of_either_form_is_refused(build: ModuleType, tmp_path: Path):
    for options in ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}, {"GNU.sparse.map": "0,9"}):
        with tarfile.open(tmp_path / "shard.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("a.jpg")
            info.pax_headers, info.size = options, 512
            archive.addfile(info, io.BytesIO(bytes(512)))
        with pytest.raises(UsageError, match=r"'a\.jpg' is a sparse file"):
            build_index(DataConfig(path=str(tmp_path / "shard.tar")))


def test_what_windows_adds_is_left_out_and_a_colon_is_part_of_a_name(build: ModuleType, tmp_path: Path):
    build.tar(tmp_path / "shard.tar", [("a:1.jpg", build.photo()), ("Thumbs.db", b"x"), ("x/desktop.ini", b"x")])
    index = build_index(DataConfig(path=str(tmp_path / "shard.tar")))
    assert (index.num_rows, dict(index.ignored)) == (1, {"thumbs.db": 1, "desktop.ini": 1})
    build.tar(tmp_path / "shard.tar", [("c:\\a.jpg", build.photo())])
    with pytest.raises(UsageError, match="absolute name"):
        build_index(DataConfig(path=str(tmp_path / "shard.tar")))
