import io
import tarfile
from pathlib import Path

import pytest

from ray_sassl.data import GROUP_ROWS, NO_LABEL, DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.process.errors import UsageError


def _write(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, format_: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format_) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def _index(path: Path, **fields: object) -> Index:
    return build_index(DataConfig(path=str(path), **fields))  # pyright: ignore[reportArgumentType]


def _special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_one_base_name_are_a_sample_in_every_dialect_of_tar(tmp_path: Path, format_: int):
    long = "folder/" + "n" * 80 + "/ü" + "x" * 120 if format_ != tarfile.USTAR_FORMAT else "folder/" + "n" * 80
    _write(
        tmp_path / "a.tar",
        ("a/1.jpg", b"one"),
        ("a/1.cls", b"5\n"),
        ("a/1.json", b"{}"),
        _special("folder", tarfile.DIRTYPE),
        (f"{long}.cls", b"-7"),
        (f"{long}.PNG", b"two"),
        ("3.seg.png", b"mask"),
        ("3.webp", b"three"),
        format_=format_,
    )
    index = _index(tmp_path / "a.tar")
    rows = read_groups(index, [0])
    assert rows.encoded == [b"one", b"two", b"three"]
    assert rows.label.tolist() == [5, -7, NO_LABEL]
    assert rows.key == [f"{tmp_path}/a.tar#{key}" for key in ("a/1", long, "3")]
    assert index.ignored == {"json": 1, "seg.png": 1}
    assert index.problems == ()


def test_runs_of_samples_are_row_groups(tmp_path: Path):
    names = range(2 * GROUP_ROWS + 5)
    _write(tmp_path / "a.tar", *((f"{name:05d}.jpg", str(name).encode()) for name in names))
    _write(tmp_path / "b.tar", ("x.jpg", b"x"))
    index = _index(tmp_path)
    assert index.group_rows.tolist() == [GROUP_ROWS, GROUP_ROWS, 5, 1]
    assert read_groups(index, range(4)).encoded == [*(str(name).encode() for name in names), b"x"]
    assert read_groups(index, [3]).row.tolist() == [0]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("/abs.jpg", b""), "absolute name"),
        (("C:\\x.jpg", b""), "absolute name"),
        (("a/../../x.jpg", b""), r"'..' in its name"),
        (("x.pkl", b""), "is a pickle"),
        (("x.meta.PICKLE", b""), "is a pickle"),
        (("x.pyd", b""), "is a pickle"),
        (_special("x.jpg", tarfile.SYMTYPE), "is a symbolic link"),
        (_special("x.jpg", tarfile.LNKTYPE), "is a hard link"),
        (_special("x.jpg", tarfile.CHRTYPE), "is a character device"),
        (_special("x.jpg", tarfile.BLKTYPE), "is a block device"),
        (_special("x.jpg", tarfile.FIFOTYPE), "is a named pipe"),
    ],
)
def test_harmful_members_are_refused_by_shard_and_name(tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, reason: str):
    _write(tmp_path / "evil.tar", ("good.jpg", b"good"), member)
    with pytest.raises(UsageError, match=rf"evil.tar: member '.*' .*{reason}"):
        _index(tmp_path)


def test_a_harmful_name_cannot_hide_in_a_pax_header(tmp_path: Path):
    info = tarfile.TarInfo("ok.jpg")
    info.pax_headers = {"path": "../../escape.jpg"}
    _write(tmp_path / "evil.tar", info, format_=tarfile.PAX_FORMAT)
    with pytest.raises(UsageError, match="escape"):
        _index(tmp_path)


def test_a_cut_shard_keeps_its_whole_samples_and_reports_the_cut(tmp_path: Path):
    path = _write(tmp_path / "a.tar", *((f"{name}.jpg", bytes([name]) * 1000) for name in range(3)))
    path.write_bytes(path.read_bytes()[: 2 * 1536 + 512 + 300])
    index = _index(path)
    rows = read_groups(index, [0])
    assert rows.encoded[:2] == [b"\0" * 1000, b"\1" * 1000]
    assert rows.encoded[2] == BadRow(str(path), 2, 2, "the shard is cut off within this image (sample 2)")
    (problem,) = index.problems
    assert (problem.row, "cut off at byte 3,884, within member '2.jpg'" in problem.reason) == (-1, True)


@pytest.mark.parametrize(("size", "reason"), [(2 * 1536, "without a tar file's end mark"), (2 * 1536 + 100, "within a header")])
def test_a_cut_between_members_or_within_a_header_is_reported(tmp_path: Path, size: int, reason: str):
    path = _write(tmp_path / "a.tar", *((f"{name}.jpg", b"x" * 1000) for name in range(3)))
    path.write_bytes(path.read_bytes()[:size])
    index = _index(path)
    assert read_groups(index, [0]).encoded == [b"x" * 1000] * 2
    assert reason in index.problems[0].reason


def test_a_cut_label_is_no_label(tmp_path: Path):
    path = _write(tmp_path / "a.tar", ("a.jpg", b"x"), ("a.cls", b"1234"))
    path.write_bytes(path.read_bytes()[: 1024 + 512 + 2])
    index = _index(path)
    assert read_groups(index, [0]).label.tolist() == [NO_LABEL]
    assert len(index.problems) == 1


def test_damage_in_the_middle_is_reported(tmp_path: Path):
    path = _write(tmp_path / "a.tar", *((f"{name}.jpg", b"x" * 1000) for name in range(3)))
    data = bytearray(path.read_bytes())
    data[1536 + 5] ^= 0xFF
    path.write_bytes(data)
    index = _index(path)
    assert index.num_rows == 1
    assert "damaged at byte 1,536" in index.problems[0].reason


def test_shards_that_were_joined_end_to_end_are_read_to_the_end(tmp_path: Path):
    one, two = (_write(tmp_path / f"{name}.tar", (f"{name}.jpg", name.encode())) for name in "ab")
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "c.tar").write_bytes(one.read_bytes() + two.read_bytes())
    assert read_groups(_index(tmp_path / "joined"), [0]).encoded == [b"a", b"b"]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"x" * 2000, "is not a tar file"), (b"\x1f\x8b" + b"x" * 2000, "is not a tar file but gzip; unpack it")]
)
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        _index(tmp_path)


def test_a_sample_without_an_image_is_a_bad_row(tmp_path: Path):
    _write(tmp_path / "a.tar", ("a.cls", b"1"), ("b.jpg", b"b"), ("c.jpg", b""))
    rows = read_groups(_index(tmp_path), [0])
    assert [str(row) for row in rows.encoded if isinstance(row, BadRow)] == [
        f"{tmp_path}/a.tar row 0: the sample has no image member (sample a)",
        f"{tmp_path}/a.tar row 2: the image is empty (sample c)",
    ]


def test_the_label_member_is_configurable_and_must_hold_a_number(tmp_path: Path):
    _write(tmp_path / "a.tar", ("a.jpg", b"a"), ("a.cls", b"cat"), ("a.y", b"3"))
    assert read_groups(_index(tmp_path, label_extension="y"), [0]).label.tolist() == [3]
    assert read_groups(_index(tmp_path, label_column=None), [0]).label.tolist() == [NO_LABEL]
    with pytest.raises(UsageError, match=r"member 'a.cls' should have a label .* but has b'cat'"):
        _index(tmp_path)


def test_the_real_shards_agree_with_python_own_tar_reader(shared_dir: Path):
    path = shared_dir / "data/imagenet-sample/wds/train-000001.tar"
    rows = read_groups(_index(path), [0, 1])
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]
    names = [key.partition("#")[2] for key in rows.key]
    assert rows.encoded == [members[f"{name}.jpg"] for name in names]
    assert rows.label.tolist() == [int(members[f"{name}.cls"]) for name in names]
    assert len(members) == 2 * len(rows)
