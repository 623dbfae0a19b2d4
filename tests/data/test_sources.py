import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_sassl.data import DataConfig
from ray_sassl.data.sources import find_sources
from ray_sassl.process.errors import UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = ["train-000.tar", "train-001.tar", "train-002.tar", "val-000.tar", "sub/deep/x.tar", ".hidden.tar", ".cache/y.tar", "notes.txt"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def _found(tree: Path, *patterns: str) -> list[str]:
    config = DataConfig(path=tuple(str(tree / pattern) for pattern in patterns), format="webdataset")
    return [str(Path(file.entry.path).relative_to(tree)) for file in find_sources(config).files]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train-*.tar", ["train-000.tar", "train-001.tar", "train-002.tar"]),
        ("train-00[12].tar", ["train-001.tar", "train-002.tar"]),
        ("train-00[!1].tar", ["train-000.tar", "train-002.tar"]),
        ("train-00?.tar", ["train-000.tar", "train-001.tar", "train-002.tar"]),
        ("train-{001..002}.tar", ["train-001.tar", "train-002.tar"]),
        ("**/x.tar", ["sub/deep/x.tar"]),
        ("su*", ["sub/deep/x.tar"]),
        ("val-000.tar", ["val-000.tar"]),
    ],
)
def test_a_glob_finds_what_it_says(tree: Path, pattern: str, expected: list[str]):
    assert _found(tree, pattern) == expected


def test_a_folder_is_searched_whole_and_hidden_files_are_left_aside_and_counted(tree: Path):
    sources = find_sources(DataConfig(path=str(tree)))
    assert sources.format == "webdataset"
    assert [Path(file.entry.path).name for file in sources.files] == [
        "x.tar",
        "train-000.tar",
        "train-001.tar",
        "train-002.tar",
        "val-000.tar",
    ]
    assert sources.ignored == {"hidden": 2, "txt": 1}


def test_a_list_is_sorted_and_each_file_counts_once(tree: Path):
    assert _found(tree, "val-000.tar", "train-*.tar", "train-000.tar")[0] == "train-000.tar"
    assert find_sources(DataConfig(path=(str(tree / "val-000.tar"), str(tree / "val*.tar")))).ignored == {"given twice": 1}


def test_a_path_that_does_not_exist_names_the_nearest(tree: Path):
    with pytest.raises(UsageError, match=r"does not exist \(did you mean 'train-000.tar'"):
        _found(tree, "trian-000.tar")


def test_a_device_is_neither_a_file_nor_a_folder(tree: Path):
    os.mkfifo(tree / "pipe")
    for path in ("/dev/zero", str(tree / "pipe")):
        with pytest.raises(UsageError, match="is neither a file nor a folder"):
            find_sources(DataConfig(path=(path,)))


def test_a_glob_without_a_match_is_an_error(tree: Path):
    with pytest.raises(UsageError, match=r"nothing matches .*test-\*"):
        _found(tree, "test-*")


def test_a_folder_of_two_formats_asks_which(tree: Path):
    (tree / "a.jpg").touch()
    with pytest.raises(UsageError, match=r"5 tar shards and 1 images; choose with data.format=webdataset\|folder"):
        find_sources(DataConfig(path=str(tree)))
    sources = find_sources(DataConfig(path=str(tree), format="folder"))
    assert (len(sources.files), sources.ignored["tar"]) == (1, 5)


def test_an_error_about_unreadable_files_lists_them(tmp_path: Path):
    (tmp_path / "a.tar.gz").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(UsageError, match=r"found there: 1 .gz, 1 .txt. Compressed tar"):
        find_sources(DataConfig(path=str(tmp_path)))


def test_a_file_given_by_path_is_read_whatever_its_name(tmp_path: Path):
    (tmp_path / "shard.0").touch()
    assert len(find_sources(DataConfig(path=str(tmp_path / "shard.0"), format="webdataset")).files) == 1


@pytest.mark.parametrize("path", ["", (), ("a", "")])
def test_an_empty_path_is_refused(path: str | tuple[str, ...]):
    with pytest.raises(ValidationError, match="the data path is empty"):
        DataConfig(path=path)
