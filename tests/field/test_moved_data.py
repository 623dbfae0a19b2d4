"""Data that were moved, or copied again with other times: a run goes on with them where their content is the same, and nowhere else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

import ray_sassl
from ray_sassl.cli import app
from ray_sassl.data import DataConfig, contents
from ray_sassl.data.contents import check_same_content, with_digests
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import index_to_continue
from ray_sassl.runs.files import INDEX, RunDirectoryError
from ray_sassl.types import RunResult
from tests.field.test_own_output import QUICK

Make = Callable[[str], Path]


def _index(path: Path | str) -> Index:
    return build_index(DataConfig(path=str(path)))


def _copied(source: Path, target: Path) -> Path:
    """A copy with other times."""
    shutil.copytree(source, target)
    for number, path in enumerate(sorted(target.rglob("*"))):
        os.utime(path, (1_000_000 + number, 1_000_000 + number))
    return target


def _flip(path: Path, place: int) -> None:
    """Change one bit, with the file's times kept."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _pretrain(data: Path, run_dir: Path, epochs: float, **how: bool) -> RunResult:
    options = {**QUICK, "data.path": str(data), "train.epochs": epochs}
    return ray_sassl.pretrain("moco_cifar10_cpu", run_dir, overrides=options, **how)


def test_a_run_goes_on_with_its_data_at_another_path_if_asked_to(field: Make, tmp_path: Path):
    data, run = field("own_output"), tmp_path / "run"
    first = _pretrain(data, run, 1)
    there = _copied(data, tmp_path / "elsewhere")
    shutil.rmtree(data)
    with pytest.raises(RunDirectoryError, match=r"another data\.path .* add --data-moved, which compares their content"):
        _pretrain(there, run, 2, resume=True)
    result = _pretrain(there, run, 2, resume=True, data_moved=True)
    assert (first.step, result.step, result.status) == (4, 9, "finished")
    assert Index.load(run / INDEX).file_path(0).startswith(str(there))
    assert _pretrain(there, run, 3, resume=True).step == 13


def test_a_run_goes_on_with_data_that_were_copied_again_if_asked_to(field: Make, tmp_path: Path):
    data, run = field("own_output"), tmp_path / "run"
    _pretrain(data, run, 1)
    shutil.move(data, tmp_path / "before")
    _copied(tmp_path / "before", data)
    with pytest.raises(RunDirectoryError, match=r"18 files .* have changed .*(?s:.*)only copied again, add --data-moved"):
        _pretrain(data, run, 2, resume=True)
    assert _pretrain(data, run, 2, resume=True, data_moved=True).status == "finished"


def test_other_bytes_are_refused_and_the_first_file_is_named(field: Make, tmp_path: Path):
    data, run = field("own_output"), tmp_path / "run"
    _pretrain(data, run, 1)
    there = _copied(data, tmp_path / "elsewhere")
    wrong = there / "class01" / "0003.jpg"
    _flip(wrong, -20)
    record = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(
        RunDirectoryError, match=rf"--data-moved is for the same data .* {wrong} holds other bytes than {data}/class01/0003"
    ):
        _pretrain(there, run, 2, resume=True, data_moved=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: (data / "class00" / "0000.jpg").unlink(), r"17 files \(folder\) and were 18"),
        (lambda data: (data / "class02").rename(data / "other"), "the classes of the data have other names"),
        (lambda data: (data / "class00" / "0000.jpg").write_bytes(b"x"), r"0000\.jpg has 1 bytes, and "),
        (lambda data: (data / "class00" / "0000.jpg").rename(data / "class00" / "9.jpg"), "bytes"),
    ],
)
def test_data_with_other_files_classes_or_names_are_refused(change: Callable[[Path], object], words: str, field: Make, tmp_path: Path):
    then = with_digests(_index(field("own_output")))
    there = _copied(tmp_path / "own_output", tmp_path / "there")
    assert check_same_content(then, _index(there)).fingerprint != then.fingerprint
    change(there)
    with pytest.raises(UsageError, match=words):
        check_same_content(then, _index(there))


def test_the_first_shard_with_other_bytes_is_named_and_an_older_record_compares_with_data_that_are_left(build: ModuleType, tmp_path: Path):
    for number in range(3):
        build.tar(tmp_path / "a" / f"{number}.tar", [(f"{number}{row}.jpg", build.photo(row)) for row in range(4)])
    then = _index(tmp_path / "a")
    there = _copied(tmp_path / "a", tmp_path / "b")
    assert check_same_content(then, _index(there)).num_rows == 12
    for name in ("1.tar", "2.tar"):
        _flip(there / name, 700)
    with pytest.raises(UsageError, match=r"b/1\.tar holds other bytes than .*a/1\.tar did"):
        check_same_content(then, _index(there))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UsageError, match="what the data held when the run began is not known"):
        check_same_content(then, _index(there))


def test_of_large_data_pieces_are_compared_with_both_ends_of_every_shard(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contents, "BUDGET_BYTES", 8 * 512)
    monkeypatch.setattr(contents, "_PIECE_BYTES", 512)
    for number in range(2):
        build.tar(tmp_path / "a" / f"{number}.tar", [(f"{number}{row}.jpg", build.photo(row)) for row in range(20)])
    then = with_digests(_index(tmp_path / "a"))
    size = (tmp_path / "a" / "1.tar").stat().st_size
    pieces = contents._pieces(then)
    assert [len(of_file) for of_file in pieces] == [4, 4]
    assert (pieces[1][0], pieces[1][-1]) == ((0, 512), (size - 512, 512))
    there = _copied(tmp_path / "a", tmp_path / "b")
    assert check_same_content(then, _index(there)).num_rows == 40
    _flip(there / "1.tar", size - 1)
    with pytest.raises(UsageError, match=r"b/1\.tar holds other bytes"):
        check_same_content(then, _index(there))


def test_studies_refuse_changed_data_and_take_moved_ones(field: Make, tmp_path: Path):
    data = field("own_output")
    with_digests(_index(data)).save(tmp_path / "index.arrow")
    there = _copied(data, tmp_path / "there")
    config = DataConfig(path=str(there))
    assert index_to_continue(config, str(tmp_path / "index.arrow"), data_moved=True).config == config
    (there / "class00" / "0001.jpg").unlink()
    with pytest.raises(RunDirectoryError, match="1 files of the data set have changed"):
        index_to_continue(config, str(tmp_path / "index.arrow"))


def test_the_command_line_names_the_option_and_refuses_it_for_a_new_run(field: Make, tmp_path: Path):
    words = ["pretrain", "moco_cifar10_cpu", f"data.path={field('own_output')}", "--run-dir", str(tmp_path / "run"), "--data-moved"]
    result = CliRunner().invoke(app, words)
    assert "--data-moved is for a run that is resumed" in str(result.exception)
    assert not (tmp_path / "run").exists()
    assert "--data-moved" in CliRunner().invoke(app, ["search", "run", "--help"], env={"COLUMNS": "200"}).output


def test_images_given_in_place_of_an_experiment_may_be_elsewhere_when_the_run_goes_on(build: ModuleType, tmp_path: Path):
    data, run = tmp_path / "data", tmp_path / "run"
    build.classes(data, range(2), 40)
    options = {name: value for name, value in QUICK.items() if not name.startswith(("method.", "train", "views"))}
    options |= {"stylize": "identity", "backbone.name": "resnet20", "train.global_batch": 8, "train.epochs": 0.2}
    assert ray_sassl.pretrain(data, run, overrides=options).step == 2
    there = _copied(data, tmp_path / "there")
    shutil.rmtree(data)
    result = ray_sassl.pretrain(there, run, overrides={"train.epochs": 0.4}, resume=True, data_moved=True)
    assert (result.status, result.step) == ("finished", 4)
