"""What lies in run directories: runs whose config is gone, and two commands at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.files.lock import LOCK, FolderInUseError, hold_folder
from ray_sassl.runs.directory import RunDirectoryError
from tests.test_api import overrides_for, write_photos


@pytest.mark.slow
def test_a_run_whose_config_is_gone_is_neither_entered_nor_resumed(tmp_path: Path):
    options = overrides_for(write_photos(tmp_path / "photos"))
    run = ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=options)
    (tmp_path / "run" / "config.yaml").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for resume in (False, True, "if begun"):
        with pytest.raises(RunDirectoryError, match=r"already contains a run, but not its config.yaml"):
            ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=options | {"seed": 5}, resume=resume)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert run.step == 3


def test_a_second_command_is_refused_before_it_changes_anything(tmp_path: Path):
    photos = write_photos(tmp_path / "photos")
    for name, command in {
        "run": lambda place: ray_sassl.pretrain("moco_cifar10_cpu", place, overrides=overrides_for(photos)),
        "study": lambda place: ray_sassl.search("style_strength", place, trials=1),
        "shards": lambda place: ray_sassl.convert_data(photos, place, "parquet"),
        "styled": lambda place: ray_sassl.stylize_dataset(photos, place, overrides={"stylize": "color_statistics"}),
    }.items():
        place = str(tmp_path / name)
        with hold_folder(place, "another command"):
            with pytest.raises(FolderInUseError, match="'another command' is at work there"):
                command(place)
            assert [path.name for path in (tmp_path / name).iterdir()] == [LOCK]


@pytest.mark.slow
def test_of_two_starts_at_once_exactly_one_trains(tmp_path: Path):
    options = overrides_for(write_photos(tmp_path / "photos"))
    code = (
        "import json, sys, ray_sassl\nfrom ray_sassl.plugins import UsageError\nsys.stdin.readline()\n"
        "try:\n    print(ray_sassl.pretrain('moco_cifar10_cpu', sys.argv[1], overrides=json.loads(sys.argv[2])).status)\n"
        "except UsageError as error:\n    print(type(error).__name__)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(options)]
    both = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = sorted(process.communicate()[0].split()[-1] for process in both)
    assert answers in (["FolderInUseError", "finished"], ["RunDirectoryError", "finished"])
