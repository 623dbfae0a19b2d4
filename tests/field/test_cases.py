"""Inputs from the field, each from the first look to the end of a short run: no traceback, and nothing is skipped in silence."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import ray_sassl
from ray_sassl.data import DataConfig
from ray_sassl.data.convert import convert_shard, open_target, plan_conversion
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files.json_files import read_json_lines
from ray_sassl.process.errors import UsageError
from ray_sassl.types import RunResult
from tests.field.test_own_output import QUICK

Make = Callable[[str], Path]
SHORT = {**QUICK, "train.epochs": 0.1, "tracking.tensorboard": False}


def _pretrain(data: Path, run_dir: Path, *, resume: bool = False, **changes: object) -> RunResult:
    options = {**SHORT, "data.path": str(data), **{name.replace("__", "."): value for name, value in changes.items()}}
    return ray_sassl.pretrain("moco_cifar10_cpu", run_dir, overrides=options, resume=resume)


@pytest.mark.parametrize(
    ("name", "path", "num_rows"),
    [
        ("numbered_classes", "rows.parquet", 120),
        ("dotted_members", "a.tar", 20),
        ("apple_double_members", "a.tar", 16),
        ("latin1_members", "a.tar", 4),
        ("latin1_file", "", 4),
        ("question_marks", "what?", 12),
        ("question_marks", "flat", 7),
        ("dangling_links", "", 12),
        ("large_png_chunks", "", 8),
        ("hash_in_a_name", "photos #2", 40),
        ("brackets_in_a_name", "[raw] set", 3),
        ("unprintable_classes", "", 6),
    ],
)
def test_every_row_is_seen_and_trained_on(name: str, path: str, num_rows: int, field: Make, tmp_path: Path):
    data = field(name) / path
    assert ray_sassl.inspect_data(str(data), sheet=str(tmp_path / "sheet.png")).num_rows == num_rows
    result = _pretrain(data, tmp_path / "run", train__epochs=2 / num_rows, train__global_batch=2)
    assert (result.status, result.step) == ("finished", 1)
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()


def test_a_run_with_line_separators_in_the_names_of_broken_images_is_resumed(field: Make, tmp_path: Path):
    data, run = field("line_separators"), tmp_path / "run"
    _pretrain(data, run, train__global_batch=100, train__epochs=1)
    broken = {Path(line["path"]).name for line in read_json_lines(str(run / "quarantine.jsonl")).objects}
    assert broken == {"shot\u2028 1.jpg", "wait\u0085.jpg"}
    result = _pretrain(data, run, resume=True, train__global_batch=100, train__epochs=2)
    assert result.status == "finished"
    lines = read_json_lines(str(run / "quarantine.jsonl"))
    assert (len(lines.objects), lines.num_damaged) == (2, 0)


def test_more_bad_images_may_be_allowed_when_a_run_is_resumed(build: ModuleType, tmp_path: Path):
    data, run = tmp_path / "data", tmp_path / "run"
    build.flat(data, 12)
    for number in range(4):
        build.put(data / f"broken{number}.jpg", build.photo()[:300])
    with pytest.raises(TooManyBadRowsError, match="of 16 rows"):
        _pretrain(data, run, train__epochs=1)
    result = _pretrain(data, run, resume=True, train__epochs=1, data__max_bad_fraction=0.3)
    assert result.status == "finished"


@pytest.mark.parametrize(("split", "limit"), [("test", 0.01), ("train", 0.01)])
def test_broken_evaluation_images_are_found_before_the_first_step(split: str, limit: float, field: Make, tmp_path: Path):
    folder = field("broken_test_images")
    good = {"path": str(folder / "train")}
    splits = {"train": good, "test": good | {"path": str(folder / "test")}}
    if split == "train":
        splits = {"train": splits["test"], "test": None}
    with pytest.raises(UsageError, match=rf"evaluate\.{split}: 4 of 44 images of .* cannot be decoded(?s:.*)cut\.jpg"):
        _pretrain(folder / "images", tmp_path / "run", evaluate={**splits, "size_px": 32})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_split_without_a_class_is_refused_before_the_first_step(name: str, field: Make, tmp_path: Path):
    folder = field("split_without_a_class")
    evaluate = {"train": {"path": str(folder / "train")}, name: {"path": str(folder / "test")}, "size_px": 32}
    with pytest.raises(UsageError, match=rf"evaluate\.{name}: .* has 8 classes and .* 7, so their labels mean different things; .*class00"):
        _pretrain(folder / "images", tmp_path / "run", evaluate=evaluate)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_on_rows_that_hold_paths_says_so(field: Make, tmp_path: Path):
    with pytest.raises(UsageError, match=r"none of the images in the first block could be decoded(?s:.*)a path .*photos/"):
        _pretrain(field("path_only_rows"), tmp_path / "run", train__epochs=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("tar_negative_pax_size", "the shard is damaged at byte 0"), ("tar_size_not_octal", "is not an octal number")],
)
def test_a_shard_without_a_whole_member_says_why(name: str, words: str, field: Make):
    with pytest.raises(UsageError, match=words):
        ray_sassl.inspect_data(str(field(name)))


@pytest.mark.parametrize("format_", ["parquet", "webdataset", "folder"])
def test_names_with_question_marks_are_converted(format_: str, field: Make, tmp_path: Path):
    for name in ("what?", "flat"):
        index = build_index(DataConfig(path=str(field("question_marks") / name if name == "what?" else tmp_path / "question_marks" / name)))
        target = str(tmp_path / f"{format_} {name}")
        conversion = plan_conversion(index, format_, 100)  # pyright: ignore[reportArgumentType]
        for shard in open_target(target, conversion):
            assert convert_shard(index, conversion, target, shard) == []
        copy = build_index(DataConfig(path=target, label_column="label" if name == "what?" else None))
        assert sorted(read_groups(copy, [0]).encoded) == sorted(read_groups(index, [0]).encoded)  # pyright: ignore[reportArgumentType]
