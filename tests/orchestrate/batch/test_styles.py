"""Banks and stylized copies of whole data sets. Most tests have one worker in this process, where a pool of actors would be; those marked
`ray` have the pool, and compare what it makes with what the one worker makes."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from benchmarks.processes import kill_driver
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.convert import ShardFormat, convert_shard, open_target, plan_conversion
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files.lock import hold_folder
from ray_sassl.orchestrate.batch import styles as style_jobs
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
from ray_sassl.orchestrate.batch.styles import StylizeResult, make_bank, stylize_dataset
from ray_sassl.process.errors import UsageError
from ray_sassl.style.bank import BadBankError, StyleBank
from ray_sassl.style.datasets import StyleJobConfig, square
from ray_sassl.style.stylizers.swift import Config as Swift

NUM_ROWS = 50
CONFIG = StyleJobConfig()
TWO = ActorPoolConfig(num_actors=2, num_cpus=0.5)


class _Here:
    """A worker of this process, to be called as Ray's actors are."""

    def __init__(self, config: StyleJobConfig) -> None:
        self._worker = style_jobs.StyleWorker(to_yaml(config), 1, 0, None)

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._worker, name))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    _patch_workers(monkeypatch)


def _patch_workers(patch: pytest.MonkeyPatch) -> None:
    """One worker in this process instead of a pool; the items end in reverse order."""

    @contextmanager
    def workers(config: StyleJobConfig, *_: object) -> Iterator[list[_Here]]:
        yield [_Here(config)]

    def spread(actors, start, items):
        return [(item, start(actors[0], item)) for item in reversed(items)]

    patch.setattr(style_jobs, "ray_session", lambda address: nullcontext())
    patch.setattr(style_jobs, "_style_workers", workers)
    patch.setattr(style_jobs, "spread", spread)
    patch.setattr(ray, "put", lambda value: value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 small pictures of very different colors in two classes."""
    draws = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for row in range(NUM_ROWS):
        pixels = (draws.integers(0, 180, (1, 1, 3)) + draws.integers(0, 76, (36 + row % 3 * 4, 40, 3))).astype(np.uint8)
        path = root / "ab"[row % 2] / f"{row:03d}.{'jpg' if row % 5 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same pictures in each format."""
    paths = {"folder": str(folder)}
    index = build_index(DataConfig(path=str(folder)))
    for format_ in ("parquet", "webdataset"):
        target = str(tmp_path_factory.mktemp(format_))
        conversion = plan_conversion(index, format_, shard_rows=20, group_rows=7)
        for shard in open_target(target, conversion):
            convert_shard(index, conversion, target, shard)
        paths[format_] = target
    return paths


def _all_rows(path: Path | str, **fields) -> Rows:
    index = build_index(DataConfig(path=str(path), **fields))
    return read_groups(index, range(index.num_groups))


def _paths(folder: Path | str) -> list[Path]:
    """The folder's files in the order in which they are visited, which shards made of it keep."""
    index = build_index(DataConfig(path=str(folder)))
    return [Path(index.file_path(file)) for file in range(index.num_files)]


def _pixels(encoded: object) -> np.ndarray:
    assert isinstance(encoded, bytes)
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _stylize(source: str, target: Path, *overrides: str, **options) -> StylizeResult:
    pool = options.pop("pool", TWO)
    data = DataConfig(path=source, max_bad_fraction=options.pop("max_bad_fraction", 0.01))
    config = apply_overrides(CONFIG, overrides)
    return stylize_dataset(data, str(target), config, pool, **{"shard_rows": 20, "show_progress": False, **options})


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _bank(source: str, out: Path, *overrides: str, pool: ActorPoolConfig = TWO, **fields):
    return make_bank(DataConfig(path=source, **fields), str(out), apply_overrides(CONFIG, overrides), pool, show_progress=False)


# Banks.


@pytest.mark.parametrize("format_", ["folder", "parquet", "webdataset"])
def test_a_bank_holds_the_stylizers_codes_of_each_image(here: None, sources, folder: Path, tmp_path: Path, format_: ShardFormat):
    result = _bank(sources[format_], tmp_path / "bank", "stylize=swift")
    bank, stylizer = StyleBank.load(tmp_path / "bank", "swift-v1"), Swift().build(torch.device("cpu"))
    assert (result.num_styles, result.bundle_id, result.bad_rows, result.notes) == (NUM_ROWS, "swift-v1", [], [])
    paths = _paths(folder)
    images = np.stack([square(Image.open(path).convert("RGB"), stylizer.style_px) for path in paths])
    expected = stylizer.embed(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()
    np.testing.assert_allclose(bank.codes, expected, atol=1e-4)
    np.testing.assert_allclose(bank.mean, expected.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(bank.covariance, np.cov(expected.T, bias=True), atol=1e-4)
    assert len(set(bank.names)) == NUM_ROWS
    if format_ == "folder":
        assert list(bank.names) == [str(path.relative_to(folder)) for path in paths]


def test_a_bank_leaves_bad_images_out_and_lists_them(here: None, folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "a" / "000.png").write_bytes(b"GIF89a")
    result = _bank(str(tmp_path / "in"), tmp_path / "bank", max_bad_fraction=0.1)
    assert (result.num_styles, [Path(row.path).name for row in result.bad_rows]) == (NUM_ROWS - 1, ["000.png"])
    assert "a/000.png" not in StyleBank.load(tmp_path / "bank").names
    with pytest.raises(TooManyBadRowsError, match=r"1 of 50 rows \(2.00%\)"):
        _bank(str(tmp_path / "in"), tmp_path / "other", max_bad_fraction=0.01)
    assert not (tmp_path / "other").exists()


def test_a_bank_without_a_single_style_is_an_error(here: None, tmp_path: Path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="no Parquet files, tar shards or images"):
        _bank(str(tmp_path / "in"), tmp_path / "bank")
    (tmp_path / "in" / "a.jpg").write_bytes(b"GIF89a")
    with pytest.raises(UsageError, match="no image could be used"):
        _bank(str(tmp_path / "in"), tmp_path / "bank", max_bad_fraction=1)


def test_a_bank_is_not_computed_where_it_cannot_be_written(here: None, sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style_jobs, "_style_workers", None)
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        _bank(sources["folder"], tmp_path)


# Stylized copies.


@pytest.mark.parametrize(
    ("source", "format_"),
    [
        ("folder", None),
        ("parquet", None),
        ("webdataset", None),
        ("folder", "parquet"),
        ("folder", "webdataset"),
        ("parquet", "folder"),
        ("webdataset", "parquet"),
    ],
)
def test_labels_order_and_sizes_are_kept_in_every_format(here: None, sources, tmp_path: Path, source: str, format_: ShardFormat | None):
    result = _stylize(sources[source], tmp_path / "out", format_=format_)
    assert (result.num_rows, result.num_shards, result.num_written, result.bad_rows, result.notes) == (NUM_ROWS, 3, 3, [], [])
    assert build_index(DataConfig(path=str(tmp_path / "out"))).format == (format_ or source)
    before, after = _all_rows(sources[source]), _all_rows(tmp_path / "out")
    order = np.arange(NUM_ROWS)
    if format_ == "folder":  # its files are named by the rows, and visited in an order of their own
        order = np.argsort([int(Path(path).stem) for path in after.path])
    assert after.label[order].tolist() == before.label.tolist()
    differences = []
    for one, other in zip(before.encoded, [after.encoded[row] for row in order], strict=True):
        assert Image.open(io.BytesIO(one)).format == Image.open(io.BytesIO(other)).format  # pyright: ignore[reportArgumentType]
        differences.append(np.abs(_pixels(one).astype(int) - _pixels(other)).mean())  # fails where sizes differ
    assert min(differences) > 2
    if (source, format_) == ("folder", None):
        assert set(_files(tmp_path / "out")) >= set(_files(Path(sources["folder"])))


def test_the_keys_of_a_parquet_copy_say_where_an_image_came_from(here: None, sources, tmp_path: Path):
    _stylize(sources["folder"], tmp_path, format_="parquet")
    import pyarrow.parquet as pq

    keys = [key for path in sorted(tmp_path.glob("*.parquet")) for key in pq.read_table(path)["key"].to_pylist()]
    assert keys == [path.name for path in _paths(sources["folder"])]


def test_copies_differ_and_keep_the_labels(here: None, sources, tmp_path: Path):
    result = _stylize(sources["parquet"], tmp_path, copies=3)
    assert (result.num_rows, result.num_shards) == (3 * NUM_ROWS, 9)
    copies = [_all_rows(tmp_path / f"copy-{number}") for number in range(3)]
    assert all(copy.label.tolist() == _all_rows(sources["parquet"]).label.tolist() for copy in copies)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        differing = [a != b for a, b in zip(copies[one].encoded, copies[other].encoded, strict=True)]
        assert np.mean(differing) > 0.85
    again = _stylize(sources["parquet"], tmp_path, copies=4)
    assert (again.num_shards, again.num_written) == (12, 3)


@pytest.mark.parametrize("format_", ["parquet", "webdataset", "folder"])
def test_shards_that_were_lost_are_made_again_to_the_byte(here: None, sources, tmp_path: Path, format_: ShardFormat):
    _stylize(sources["folder"], tmp_path / "out", format_=format_)
    whole = _files(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if "000001" in path.name:
            path.unlink()
    result = _stylize(sources["folder"], tmp_path / "out", format_=format_)
    assert (result.num_shards, result.num_written) == (3, 1)
    assert _files(tmp_path / "out") == whole
    assert _stylize(sources["folder"], tmp_path / "out", format_=format_).num_written == 0


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["sassl.alpha=[0.5,0.6]"], {}, r"sassl\.alpha was \[1\.0, 1\.0\] and is \[0\.5, 0\.6\]"),
        (["seed=1"], {}, "seed was 0 and is 1"),
        (["stylize=swift"], {}, "stylize.name was 'color_statistics' and is 'swift'"),
        ([], {"shard_rows": 10}, "shard_rows was 20 and is 10"),
        ([], {"copies": 2}, "has a single copy"),
    ],
)
def test_the_target_of_another_job_is_refused(here: None, sources, tmp_path: Path, overrides, options, message):
    _stylize(sources["folder"], tmp_path / "out")
    before = _files(tmp_path / "out")
    with pytest.raises(UsageError, match=message) as error:
        _stylize(sources["folder"], tmp_path / "out", *overrides, **options)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300
    assert _files(tmp_path / "out") == before


def test_a_target_that_cannot_be_used_is_refused_before_anything_is_written(here: None, sources, folder: Path, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    for copies in (1, 2):
        with pytest.raises(UsageError, match=r"is not empty"):
            _stylize(sources["parquet"], tmp_path / "taken", copies=copies)
    with pytest.raises(UsageError, match="is a file, not a folder"):
        _stylize(sources["parquet"], tmp_path / "taken" / "notes.txt")
    with pytest.raises(UsageError, match="is inside"):
        _stylize(sources["folder"], folder / "stylized")
    assert not (folder / "stylized").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]


def test_a_job_that_cannot_begin_leaves_the_target_free_for_another_try(here: None, sources, tmp_path: Path):
    _bank(sources["folder"], tmp_path / "bank", "stylize=swift")
    with pytest.raises(BadBankError, match="codes of swift-v1"):
        _stylize(sources["folder"], tmp_path / "out", "sassl.style_source=bank", f"sassl.bank={tmp_path / 'bank'}")
    result = _stylize(sources["folder"], tmp_path / "out", "stylize=swift", "sassl.style_source=bank", f"sassl.bank={tmp_path / 'bank'}")
    assert result.num_rows == NUM_ROWS


def test_styles_of_a_bank_reach_the_actors_by_a_relative_path(here: None, sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _bank(sources["folder"], tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    result = _stylize(sources["folder"], Path("out"), "sassl.style_source=gaussian", "sassl.bank=bank")
    assert result.num_rows == NUM_ROWS
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 40


def test_bad_rows_are_listed_and_all_others_are_kept(here: None, folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "a" / "000.png").write_bytes(b"GIF89a")
    Image.new("RGB", (40, 20)).save(tmp_path / "in" / "b" / "049.jpg")
    options = {"max_bad_fraction": 0.1, "copies": 2, "format_": "parquet"}
    result = _stylize(str(tmp_path / "in"), tmp_path / "out", "stylize=swift", **options)
    reasons = {Path(row.path).name: row.reason for row in result.bad_rows}
    assert (result.num_rows, sorted(reasons)) == (2 * 48, ["000.png", "049.jpg"])
    assert "40 x 20 px" in reasons["049.jpg"]
    again = _stylize(str(tmp_path / "in"), tmp_path / "out", "stylize=swift", **options)
    assert (again.num_written, again.num_rows, again.bad_rows) == (0, 96, result.bad_rows)
    assert len(_all_rows(tmp_path / "out" / "copy-1")) == 48
    with pytest.raises(TooManyBadRowsError, match=r"2 of 50 rows"):
        _stylize(str(tmp_path / "in"), tmp_path / "out", "stylize=swift", **{**options, "max_bad_fraction": 0.03})


def test_probability_zero_copies_every_byte(here: None, sources, folder: Path, tmp_path: Path):
    _stylize(sources["folder"], tmp_path, "sassl.prob=0")
    assert {name: content for name, content in _files(tmp_path).items() if name in _files(folder)} == _files(folder)


def test_what_an_actor_notes_reaches_the_user(here: None, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "in" / "only.png")
    result = _stylize(str(tmp_path / "in"), tmp_path / "out")
    assert "only.png was stylized in its own style" in result.notes[0]
    assert result.notes[0] in caplog.text


# On a pool of actors.


@pytest.fixture
def one_worker(sources, tmp_path: Path) -> Path:
    """A bank and a copy by one worker in this process."""
    with pytest.MonkeyPatch.context() as patch:
        _patch_workers(patch)
        _bank(sources["folder"], tmp_path / "one" / "bank", "stylize=swift")
        _stylize(sources["folder"], tmp_path / "one" / "copy", "stylize=swift")
    return tmp_path / "one"


@pytest.mark.ray
@pytest.mark.slow
def test_two_actors_make_the_very_bytes_that_one_worker_makes(one_worker: Path, ray_cluster: None, sources, tmp_path: Path, capfd):
    bank = DataConfig(path=sources["folder"])
    make_bank(bank, str(tmp_path / "bank"), apply_overrides(CONFIG, ["stylize=swift"]), TWO)
    assert "starting 1 actor of 0.5 CPU" in (said := capfd.readouterr().out)  # a folder of 50 images is one row group
    assert "computing styles: 50 of 50" in said
    result = _stylize(sources["folder"], tmp_path / "copy", "stylize=swift", show_progress=True)
    assert result.num_rows == NUM_ROWS
    assert "starting 2 actors of 0.5 CPU" in (said := capfd.readouterr().out)
    assert "stylizing: 50 of 50" in said
    assert (tmp_path / "bank").read_bytes() == (one_worker / "bank").read_bytes()
    assert _files(tmp_path / "copy") == _files(one_worker / "copy")
    deadline = time.monotonic() + 60  # no actor outlives its job
    while time.monotonic() < deadline and ray.available_resources().get("CPU") != 2:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.ray
@pytest.mark.slow
def test_actors_that_do_not_fit_are_refused(ray_cluster: None, sources, tmp_path: Path):
    with pytest.raises(UsageError, match=r"5 actors of 1 CPUs and 0 GPUs do not fit: the cluster can offer 2 CPUs and 0 GPUs"):
        _stylize(sources["folder"], tmp_path / "out", pool=ActorPoolConfig(num_actors=5))
    with pytest.raises(UsageError, match="0 GPUs"):
        _stylize(sources["folder"], tmp_path / "out", pool=ActorPoolConfig(num_gpus=0.5))


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_cannot_be_built_ends_the_job_with_the_reason(
    ray_cluster: None, sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A node that does not reach what the driver reaches."""
    monkeypatch.setattr(style_jobs, "check_job", lambda config: "color_statistics-v1")
    monkeypatch.setattr(style_jobs, "change_of", lambda *_: {})
    overrides = ["sassl.style_source=bank", f"sassl.bank={tmp_path / 'elsewhere'}"]
    with pytest.raises(UsageError, match=r"^there is no style bank .*elsewhere; make one with"):
        _stylize(sources["folder"], tmp_path / "out", *overrides)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_driver_is_killed_goes_on_and_ends_as_if_it_had_not_been(here: None, forking_ray: None, sources, tmp_path: Path):
    """SIGKILL after some shards; then the same call."""
    options = ["sassl.beta=[0.2,0.9]", "--shard-rows", "2", "--actors", "1", "--actor-cpus", "0.5", "--copies", "2"]
    command = [sys.executable, "-m", "ray_sassl.cli", "stylize", "dataset", sources["parquet"], str(tmp_path / "killed"), *options]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen([*command, "stylize=color_statistics"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None and len(list(tmp_path.glob("killed/copy-0/*.parquet"))) < 3:
        time.sleep(0.02)
    kill_driver(driver)
    assert driver.returncode == -signal.SIGKILL, driver.communicate()
    there = len(list(tmp_path.glob("killed/copy-*/*.parquet")))
    assert 3 <= there < 50
    options = {"shard_rows": 2, "copies": 2}
    with hold_folder(str(tmp_path / "killed"), "the same again"):  # which takes over what the killed command has left
        result = _stylize(sources["parquet"], tmp_path / "killed", "sassl.beta=[0.2,0.9]", **options)
    assert (result.num_rows, result.num_shards, result.num_written) == (2 * NUM_ROWS, 50, 50 - there)
    _stylize(sources["parquet"], tmp_path / "whole", "sassl.beta=[0.2,0.9]", **options)
    left = {name: content for name, content in _files(tmp_path / "killed").items() if not name.endswith((".part", ".lock"))}
    assert left == _files(tmp_path / "whole")


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_dies_is_replaced_and_its_shards_are_made_again(
    ray_cluster: None, sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Mortal(style_jobs.StyleWorker):
        def shard(self, index, conversion, target, copy, shard):
            flag = tmp_path / f"died-{shard}"
            if shard == 1 and not flag.exists():
                flag.touch()
                os._exit(1)
            return super().shard(index, conversion, target, copy, shard)

    monkeypatch.setattr(style_jobs, "StyleWorker", Mortal)
    result = _stylize(sources["folder"], tmp_path / "out")
    assert (tmp_path / "died-1").exists()
    assert (result.num_rows, result.num_written) == (NUM_ROWS, 3)
    assert _all_rows(tmp_path / "out").label.tolist() == _all_rows(sources["folder"]).label.tolist()
