"""What a data set holds and is not read: one line says how much, why, and three names; `--strict` refuses."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import ray_sassl
from ray_sassl.cli import app
from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, cached_index
from ray_sassl.process.errors import UsageError
from tests.evaluation.detection.conftest import write_data, write_example
from tests.exporting.conftest import MakeRun, make_run
from tests.field.test_own_output import QUICK

__all__ = ["make_run"]

Make = Callable[[str], Path]


def _index(path: Path | str, **fields: Any) -> Index:
    return build_index(DataConfig(path=str(path), **fields))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "dangling_links",
            "24 files are left out: 24 links to nothing (class00/annexed0.jpg, class00/annexed1.jpg, class00/annexed2.jpg, ...)",
        ),
        ("one_link_loop", "1 files are left out: 1 links to what is there already (a/l1)"),
        ("latin1_file", r"1 files are left out: 1 names that are not UTF-8 (caf\xe9.jpg)"),
    ],
)
def test_strict_refuses_with_the_text_of_the_warning(name: str, words: str, field: Make, caplog: pytest.LogCaptureFixture):
    folder = field(name)
    assert _index(folder).left_out == words
    assert caplog.text.count(words) == 1
    with pytest.raises(UsageError) as refused:
        _index(folder, strict=True)
    assert words in str(refused.value)
    assert "With --strict (data.strict=true) nothing may be left out." in str(refused.value)


@pytest.mark.parametrize("name", ["own_output", "apple_double_members", "dotted_members", "latin1_members", "question_marks"])
def test_strict_accepts_data_without_losses(name: str, field: Make):
    folder = field(name)
    assert _index(folder / "flat" if name == "question_marks" else folder, strict=True).num_rows > 0


def test_images_with_other_endings_are_recognized_by_their_content(build: ModuleType, tmp_path: Path):
    build.flat(tmp_path, 2)
    for name in ("scraped.jpg?w=600", "scraped2.jpg?w=600", "0001", "photo.jpg_large", "notes.txt", "labels.csv", "empty"):
        build.put(tmp_path / name, b"" if name == "empty" else b"a,b\n" if name.endswith(("txt", "csv")) else build.photo())
    index = _index(tmp_path)
    assert index.num_rows == 2
    assert index.left_out == (
        "5 files are left out: 2 images without an ending (0001, empty); "
        "2 images that end in .jpg?w=600 (scraped.jpg?w=600, scraped2.jpg?w=600); 1 images that end in .jpg_large (photo.jpg_large)"
    )


def test_hidden_images_are_named_and_what_macos_adds_is_not(build: ModuleType, tmp_path: Path):
    build.flat(tmp_path, 2)
    for name in (".thumbs/1.jpg", ".2.png", "._0000.jpg", ".DS_Store"):
        build.put(tmp_path / name, build.photo())
    index = _index(tmp_path)
    assert index.ignored == {"hidden": 4}
    assert index.left_out == "2 files are left out: 2 hidden (.2.png, .thumbs/1.jpg)"


def test_merged_or_dropped_members_are_reported_and_refused(build: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    members = [(f"{number}.jpg", build.photo(number)) for number in range(4)]
    apart = [(f"{number}.cls", b"%d" % number) for number in range(3)]
    build.tar(tmp_path / "a.tar", [*members, *apart, ("9.gif", b"GIF89a"), ("3.seg.png", b"mask")])
    config = DataConfig(path=str(tmp_path))
    index = cached_index(config, tmp_path / "index.arrow")
    assert index.left_out == (
        "6 members of shards are left out or merged: "
        "4 members away from the rest of their sample (merged) (a.tar: 0.cls, a.tar: 1.cls, a.tar: 2.cls, ...); "
        "1 .gif (a.tar: 9.gif); 1 .seg.png (a.tar: 3.seg.png)"
    )
    assert caplog.text.count(index.left_out) == 1
    for refuse in (build_index, lambda config: cached_index(config, tmp_path / "index.arrow")):
        with pytest.raises(UsageError, match="6 members of shards are left out or merged"):
            refuse(config.model_copy(update={"strict": True}))


@pytest.mark.slow
def test_a_run_may_become_strict_when_it_is_resumed(field: Make, tmp_path: Path):
    options = {**QUICK, "data.path": str(field("dangling_links"))}
    ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=options)
    with pytest.raises(UsageError, match="24 links to nothing"):
        ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides={**options, "data.strict": True}, resume=True)


@pytest.mark.parametrize(
    "words",
    [
        ["data", "inspect", "DATA", "--out", "OUT"],
        ["data", "check", "DATA"],
        ["data", "convert", "DATA", "OUT", "--format", "parquet"],
        ["stylize", "dataset", "DATA", "OUT"],
        ["pretrain", "moco_cifar10_cpu", "data.path=DATA", "evaluate.train=null", "evaluate.test=null", "scaling.num_workers=0"],
    ],
)
def test_every_verb_that_reads_data_has_the_option(words: list[str], field: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = str(field("dangling_links"))
    for reads in ("ray_sassl.orchestrate.runtime.session.ray_session",):
        monkeypatch.setattr(reads, _NoRay)
    given = [word.replace("DATA", data).replace("OUT", str(tmp_path / "out")) for word in words]
    result = CliRunner().invoke(app, [*given, "--strict"])
    assert isinstance(result.exception, UsageError)
    assert "24 links to nothing" in str(result.exception)


class _NoRay:
    def __init__(self, address: str | None) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


def _strict_verbs(group: Any, name: str = "") -> set[str]:
    """The verbs that have the option `--strict`."""
    if hasattr(group, "commands"):
        return {verb for word, command in group.commands.items() for verb in _strict_verbs(command, f"{name} {word}".strip())}
    return {name} if any("--strict" in getattr(option, "opts", ()) for option in group.params) else set()


def test_every_verb_that_reads_images_can_be_strict():
    reading = {"pretrain", "views", "evaluate", "detect", "search run", "ablation run", "embed", "export", "compare"}
    reading |= {f"data {verb}" for verb in ("inspect", "check", "convert")}
    reading |= {f"stylize {verb}" for verb in ("bank", "dataset", "preview", "distill")}
    assert _strict_verbs(typer.main.get_command(app)) == reading


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "demo_plain", "evaluate.train={path: DATA}"],
        ["views", "demo_plain", "data.path=DATA"],
        ["evaluate", "RUN", "knn", "evaluate.test.path=DATA"],
        ["search", "style_strength", "data.path=DATA", "evaluate={train: {path: DATA}, test: null}"],
        ["ablation", "sassl_method", "data.path=DATA", "evaluate={train: {path: DATA}, test: {path: DATA}}"],
        ["export", "RUN", "evaluate.train={path: DATA}", "--with-head", "linear"],
        ["compare", "RUN", "--on", "knn evaluate.train.path=DATA"],
        ["stylize", "preview", "DATA", "--styles", "DATA", "stylize=color_statistics"],
    ],
    ids=lambda words: words[0],
)
def test_a_strict_verb_refuses_data_of_which_something_is_left_out(
    words: list[str], field: Make, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data, run_dir = str(field("dangling_links")), make_run("evaluate.size_px=16")
    command = [word.replace("DATA", data).replace("RUN", run_dir) for word in words]
    with pytest.raises(UsageError, match=r"With --strict \(data.strict=true\) nothing may be left out"):
        CliRunner().invoke(app, [*command, "--strict"], catch_exceptions=False)


def test_a_strict_detection_refuses_boxes_without_an_area(make_run: MakeRun, tmp_path: Path):
    folder = write_data(tmp_path / "voc", 2, 1)
    write_example(folder, "trainval0", [("square", (3, 3, 20, 20), 0), ("disc", (30, 5, 30, 20), 0)])
    with pytest.raises(UsageError, match="1 boxes have no area and would be left out"):
        ray_sassl.detect(make_run(), str(folder), strict=True)
