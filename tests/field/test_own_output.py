"""What this package wrote among somebody's images: contact sheets, runs, copies, features. None of it becomes data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ray_sassl
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data import DataConfig
from ray_sassl.data.convert import check_target, convert_shard, open_target, plan_conversion
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.files.own import MARKER, mark_file, mark_folder, write_picture
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.files import RunDirectoryError
from tests.flaky_store import s3_options, s3_server

Make = Callable[[str], Path]

QUICK = {
    "scaling.num_workers": 0,
    "train": {"global_batch": 4, "epochs": 1, "log_every": 1},
    "views.size_px": 16,
    "method.queue_size": 8,
    "method.projector_hidden_size": 8,
    "method.embedding_size": 8,
    "evaluate": {"train": None, "test": None},
    "data.block_rows": 8,
    "data.shuffle_window": 16,
}


def _index(path: Path | str) -> Index:
    return build_index(DataConfig(path=str(path)))


def _copy(source: Path, target: Path, format_: str = "folder") -> Path:
    index = _index(source)
    conversion = plan_conversion(index, format_, 1000)  # pyright: ignore[reportArgumentType]
    for shard in open_target(str(target), conversion):
        convert_shard(index, conversion, str(target), shard)
    mark_folder(str(target), known=None)
    return target


def test_a_run_a_sheet_and_a_copy_below_the_data_leave_it_as_it_was(field: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    folder = field("own_output")
    before = _index(folder)
    for name in ("sheet.png", "class01/views.png"):
        ray_sassl.inspect_data(str(folder), sheet=str(folder / name))
    shutil.move(_copy(folder, tmp_path / "copy"), folder / "class00" / "copy")
    ray_sassl.pretrain("moco_cifar10_cpu", folder / "runs" / "a", overrides={**QUICK, "data.path": str(folder)})
    caplog.clear()
    after = _index(folder)
    assert after.fingerprint == before.fingerprint
    assert (after.num_rows, after.class_names) == (18, ("class00", "class01", "class02"))
    assert after.ignored["written by ray-sassl"] == 22
    words = "22 files that ray-sassl itself wrote are left out: class00/copy/ (18), class01/views.png, runs/a/ (2), ..."
    assert caplog.text.count(words) == 1


def test_a_run_inside_its_data_is_resumed(field: Make, monkeypatch: pytest.MonkeyPatch):
    folder = field("own_output")
    monkeypatch.chdir(folder)
    options = {**QUICK, "data.path": "."}
    ray_sassl.pretrain("moco_cifar10_cpu", "runs/a", overrides=options)
    ray_sassl.inspect_data(".", sheet="contact_sheet.png")
    result = ray_sassl.pretrain("moco_cifar10_cpu", "runs/a", overrides={**options, "train.epochs": 2}, resume=True)
    assert (result.status, result.step) == ("finished", 9)


@pytest.mark.parametrize("run_dir", ["", "class00"])
def test_a_run_directory_among_the_images_themselves_is_refused(run_dir: str, field: Make):
    folder = field("own_output")
    with pytest.raises(RunDirectoryError, match=r"lies in the data .* and holds other files"):
        ray_sassl.pretrain("moco_cifar10_cpu", folder / run_dir, overrides={**QUICK, "data.path": str(folder)})
    assert _index(folder).num_rows == 18
    assert not list(folder.rglob(MARKER))


def test_folders_with_files_of_others_are_never_marked(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    assert not mark_folder(str(tmp_path), known=("ours.txt",))
    (tmp_path / "mine.txt").rename(tmp_path / "ours.txt")
    assert mark_folder(str(tmp_path), known=("ours.txt",))
    (tmp_path / "later.txt").touch()
    assert mark_folder(str(tmp_path))


@pytest.mark.parametrize("format_", ["parquet", "webdataset", "folder"])
def test_a_copy_is_read_if_its_own_path_is_given(format_: str, field: Make, tmp_path: Path):
    copy = _copy(field("own_output"), tmp_path / "copies" / "copy", format_)
    assert _index(copy).num_rows == 18
    assert _index(copy).ignored.keys() <= {"hidden", "json"}
    with pytest.raises(UsageError, match=r"written by ray-sassl.*To read a copy that ray-sassl made, give the copy's own folder"):
        _index(copy.parent)


def test_a_glob_finds_nothing_of_ours_and_a_picture_that_is_named_is_data(field: Make, build: ModuleType):
    folder = field("own_output")
    ray_sassl.inspect_data(str(folder), sheet=str(folder / "class00" / "sheet.png"))
    build.flat(folder / "class00" / "runs", 3)
    mark_folder(str(folder / "class00" / "runs"), known=None)
    for pattern in ("**/*", "class*", "class0?/**", "*"):
        assert _index(folder / pattern).num_rows == 18, pattern
    with pytest.raises(UsageError, match="1 written by ray-sassl"):
        _index(folder / "**/*.png")
    assert _index(folder / "class00" / "sheet.png").num_rows == 1
    with pytest.raises(UsageError, match="nothing matches"):
        _index(folder / "**/*.webp")


def test_our_own_picture_is_recognized_after_a_move_and_is_still_a_picture(field: Make, tmp_path: Path):
    folder = field("own_output")
    ray_sassl.inspect_data(str(folder), sheet=str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
        assert sheet.info["Software"] == "ray-sassl"
    shutil.move(tmp_path / "sheet.png", folder / "class02" / "9999.png")
    assert _index(folder).num_rows == 18


def test_features_next_to_their_shards_are_left_out(build: ModuleType, tmp_path: Path):
    pq.write_table(pa.table({"image": [build.photo()], "label": [0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"features": [1.0]}), tmp_path / "features.parquet")
    mark_file(tmp_path / "features.parquet")
    index = _index(tmp_path)
    assert (index.num_files, index.ignored) == (1, {"written by ray-sassl": 1})


def test_only_new_pictures_are_opened_to_see_whether_the_data_has_changed(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(3):
        build.put(tmp_path / f"{number}.png", build.photo(number, 0, "PNG"))
    index = _index(tmp_path)
    ray_sassl.inspect_data(str(tmp_path), sheet=str(tmp_path / "sheet.png"))
    opened: list[str] = []
    is_own = "ray_sassl.data.sources.is_own_picture"
    monkeypatch.setattr(is_own, lambda path: opened.append(Path(path).name) or path.endswith("sheet.png"))
    assert index.changed_files() == []
    assert opened == ["sheet.png"]


def test_a_target_below_a_glob_that_would_find_it_is_refused(tmp_path: Path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    for pattern in ("data/*", "data/*/*.jpg", "data/**/*.jpg", "da?a", "data/[ac]*/**", "data/{0..1}*"):
        if pattern == "data/{0..1}*":
            check_target(str(tmp_path / "data" / "copy"), DataConfig(path=str(tmp_path / pattern)))
            continue
        with pytest.raises(UsageError, match="is inside its source"):
            check_target(str(tmp_path / "data" / "copy"), DataConfig(path=str(tmp_path / pattern)))
    for pattern in ("data/*.jpg", "data/shard-*.tar", "data2/*"):
        check_target(str(tmp_path / "data" / "copy"), DataConfig(path=str(tmp_path / pattern)))


@pytest.mark.slow
def test_our_own_files_on_an_object_store_are_recognized_without_reading_them(build: ModuleType):
    with s3_server() as server:
        options = s3_options(server)
        root = f"s3://bucket/photos{options}"
        storage.write_bytes(storage.join(root, "a/1.png"), build.photo(0, 0, "PNG"))
        write_picture(storage.join(root, "sheet.png"), build.photo(0, 0, "PNG"))
        storage.write_bytes(storage.join(root, "runs/one/views.png"), build.photo(0, 0, "PNG"))
        mark_folder(storage.join(root, "runs/one"), known=None)
        index = _index(root)
        assert (index.num_rows, index.ignored["written by ray-sassl"]) == (1, 2)
        check_target(f"s3://bucket/copy{options}", DataConfig(path=root))
        with pytest.raises(UsageError, match="is inside its source"):
            check_target(f"s3://bucket/photos/copy{options}", DataConfig(path=f"s3://bucket/photos/*{options}"))


def test_studies_and_their_trials_carry_the_mark(field: Make, tmp_path: Path):
    from ray_sassl.api.search import make_study
    from ray_sassl.study.record import StudyDirectoryError, open_study

    folder = field("own_output")
    base = apply_overrides(load_experiment("demo"), [("data.path", str(folder))])
    study = make_study("style_strength", experiment=base, trials=1)
    open_study(study, str(folder / "studies" / "s"), resume=False)
    assert (folder / "studies" / "s" / MARKER).is_file()
    with pytest.raises(StudyDirectoryError, match="lies in the data"):
        open_study(study, str(folder), resume=False)
    assert json.dumps(_index(folder).ignored) == "{}"
