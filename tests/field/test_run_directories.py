"""What lies in run directories: runs whose config is gone, and two commands at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.files.lock import LOCK, FolderInUseError, hold_folder
from ray_sassl.orchestrate.batch.distill import _open_work_dir
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.files import RunDirectoryError
from ray_sassl.study.record import open_study, write_trial
from ray_sassl.style.distillation import DistillConfig
from tests.exporting.conftest import MakeRun, make_run
from tests.study.test_record import make_study, make_trial
from tests.test_api import overrides_for, write_photos

__all__ = ["make_run"]


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


@pytest.mark.parametrize("trace", ["summary.json", "evaluation/step-00000007/knn.json"])
def test_a_directory_with_any_trace_of_a_run_is_not_entered(trace: str, tmp_path: Path):
    place = tmp_path / "run" / trace
    place.parent.mkdir(parents=True)
    place.write_text('{"step": 7}')
    with pytest.raises(RunDirectoryError, match=r"already contains a run, but not its config.yaml"):
        ray_sassl.pretrain("demo_plain", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [Path(trace).parts[0]]


def test_a_start_that_failed_before_the_first_step_is_no_run_and_its_bad_rows_are_forgotten(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"step": 0, "status": "failed"}')
    bad = {"path": "elsewhere.tar", "row": 3, "sample_id": 3, "reason": "damaged"}
    (tmp_path / "run" / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    config = ray_sassl.load_config("demo_plain")
    prepare_run_dir(config, str(tmp_path / "run"), resume=False)
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()


def test_trials_without_their_study_are_not_taken_for_those_of_a_new_one(tmp_path: Path):
    study = make_study()
    open_study(study, str(tmp_path), resume=False)
    write_trial(str(tmp_path), make_trial(0, [0.1]))
    (tmp_path / "study.yaml").unlink()
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"already contains trials, but not their study.yaml"):
            open_study(study, str(tmp_path), resume=resume)


def test_crops_and_checkpoints_without_their_job_are_not_taken_for_those_of_a_new_one(tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(b"of another teacher")
    with pytest.raises(UsageError, match=r"has no job.json, but checkpoint.pt, of which nobody knows the job"):
        _open_work_dir(str(tmp_path), DistillConfig(), ([], []), (), 1, None)


def test_a_second_command_is_refused_before_it_changes_anything(make_run: MakeRun, tmp_path: Path):
    photos = write_photos(tmp_path / "photos")
    for name, command in {
        "run": lambda place: ray_sassl.pretrain("moco_cifar10_cpu", place, overrides=overrides_for(photos)),
        "study": lambda place: ray_sassl.search("style_strength", place, trials=1),
        "shards": lambda place: ray_sassl.convert_data(photos, place, "parquet"),
        "styled": lambda place: ray_sassl.stylize_dataset(photos, place, overrides={"stylize": "color_statistics"}),
        "features": lambda place: ray_sassl.embed(make_run(), photos, place),
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
