"""Train, validation and test images that are the same are refused, however they are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_sassl.config.schema import EvaluateConfig
from ray_sassl.data import DataConfig
from ray_sassl.evaluation import apart
from ray_sassl.evaluation.apart import check_selection, files_in_both
from ray_sassl.process.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of shards, which are not opened here: they are no Parquet."""
    for name in ("train-0", "train-1", "val-0", "test-0", "test-1"):
        (tmp_path / f"{name}.parquet").write_bytes(name.encode())
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine.parquet").symlink_to(tmp_path / "test-0.parquet")
    (tmp_path / "copies").mkdir()
    os.link(tmp_path / "test-1.parquet", tmp_path / "copies" / "other.parquet")
    return tmp_path


def _evaluate(folder: Path, train: str, validation: str | None, test: str | None) -> EvaluateConfig:
    paths = {
        name: DataConfig(path=f"{folder}/{path}") for name, path in (("train", train), ("validation", validation), ("test", test)) if path
    }
    return EvaluateConfig(**paths)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "validation", ["test-*.parquet", "test-0.parquet", "./test-0.parquet", "*-0.parquet", "links", "copies", "links/*"]
)
def test_test_images_do_not_choose_however_they_are_named(folder: Path, validation: str):
    with pytest.raises(UsageError, match=r"evaluate\.validation and evaluate\.test are the same images .*scores too well"):
        check_selection(_evaluate(folder, "train-*.parquet", validation, "test-*.parquet"))


def test_sets_that_are_apart_are_taken_also_before_the_test_images_are_there(folder: Path):
    check_selection(_evaluate(folder, "train-*.parquet", "val-*.parquet", "test-*.parquet"))
    check_selection(_evaluate(folder, "train-*.parquet", "val-*.parquet", "nowhere/*.parquet"))
    check_selection(_evaluate(folder, "train-*.parquet", None, None))


def test_train_images_are_neither_validation_nor_test_images(folder: Path):
    with pytest.raises(UsageError, match=r"evaluate\.validation and evaluate\.train are the same .*evaluate\.validation=0\.1"):
        check_selection(_evaluate(folder, "train-*.parquet", "train-1.parquet", None))
    for train in ("test-*.parquet", "*.parquet", "t*-1.parquet"):
        with pytest.raises(UsageError, match=r"the train and the test images are the same .*images learned by heart"):
            check_selection(_evaluate(folder, train, None, "test-*.parquet"))
    with pytest.raises(UsageError, match="are the same"):
        check_selection(EvaluateConfig(train=DataConfig(path="synthetic"), test=DataConfig(path="synthetic:train")))


def test_the_first_files_are_named_and_the_others_counted(folder: Path):
    for number in range(10):
        (folder / f"more-{number}.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=r"more-2\.parquet and 7 more files"):
        check_selection(_evaluate(folder, "more-*.parquet", None, "mor[e]-*.parquet"))


def test_folders_that_cannot_meet_are_not_listed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("train", "testing"):
        (folder / name).mkdir()
    monkeypatch.setattr(apart, "find_sources", lambda config: pytest.fail("it was listed"))
    check_selection(_evaluate(folder, "train", None, "testing"))
    check_selection(_evaluate(folder, "train/*.parquet", None, "testing/*.parquet"))


def test_what_cannot_be_listed_meets_nothing(tmp_path: Path):
    assert files_in_both(DataConfig(path=f"{tmp_path}/a"), DataConfig(path=f"{tmp_path}/b")) == []
