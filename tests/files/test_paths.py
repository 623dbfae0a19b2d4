from pathlib import Path
from typing import Annotated

import pytest

from ray_sassl.data import DataConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.files.paths import LocalPath, absolute, with_absolute_paths
from ray_sassl.plugins import FrozenConfig
from ray_sassl.style.stylizers.swift import Config as Swift


class Leaf(FrozenConfig):
    file: Annotated[str | None, LocalPath()] = None
    name: str = "a"


class Tree(FrozenConfig):
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    files: Annotated[tuple[str, ...], LocalPath(other_than=("none",))] = ()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)


def test_a_path_is_absolute_and_a_uri_stays(tmp_path: Path):
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("~/b") == "/home/me/b"
    for path in ("/b", "s3://bucket/b?region=x"):
        assert absolute(path) == path


def test_marked_fields_of_nested_configs_become_absolute_and_no_others(tmp_path: Path):
    tree = Tree(leaf=Leaf(file="x", name="x"), leaves=(Leaf(file="~/y"), Leaf()), files=("z", "none", "gs://z"))
    there = with_absolute_paths(tree)
    assert there.leaf == Leaf(file=str(tmp_path / "x"), name="x")
    assert there.leaves == (Leaf(file="/home/me/y"), Leaf())
    assert there.files == (str(tmp_path / "z"), "none", "gs://z")
    assert with_absolute_paths(there) is there


def test_the_embedded_data_set_is_not_a_path_and_a_folder_of_a_similar_name_is(tmp_path: Path):
    for path in ("synthetic", "synthetic:test"):
        assert with_absolute_paths(DataConfig(path=path)).path == path
    assert with_absolute_paths(DataConfig(path="synthetic-2")).path == str(tmp_path / "synthetic-2")


def test_every_path_of_a_run_becomes_absolute(tmp_path: Path):
    config = load_experiment("demo")
    data = config.data.model_copy(update={"path": ("~/a", "b/*.tar", "s3://c")})
    evaluate = config.evaluate.model_copy(update={"train": data, "test": None})
    sassl = config.sassl.model_copy(update={"style_source": "bank", "bank": "bank.safetensors"})
    stylize = Swift(weights="swift.safetensors")
    tracking = config.tracking.model_copy(update={"prices": "~/prices.yaml"})
    there = with_absolute_paths(
        config.model_copy(update={"data": data, "evaluate": evaluate, "sassl": sassl, "stylize": stylize, "tracking": tracking})
    )
    paths = ("/home/me/a", str(tmp_path / "b/*.tar"), "s3://c")
    assert (there.data.path, there.evaluate.train and there.evaluate.train.path) == (paths, paths)
    assert there.sassl.bank == str(tmp_path / "bank.safetensors")
    assert there.stylize.weights_location() == str(tmp_path / "swift.safetensors")
    assert there.tracking.prices == "/home/me/prices.yaml"
