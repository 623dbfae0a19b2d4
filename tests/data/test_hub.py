"""Data sets of the Hugging Face hub: here a folder that its library reads as one, since the hub is not reached."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_sassl.data import DataConfig
from ray_sassl.data.hub import HubName, ensure_hub, hub_name
from ray_sassl.data.reading import all_labels, build_index, read_groups
from ray_sassl.data.sources import check_there
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.recipe import is_data, run_name
from tests.cli.in_process import call_main


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a data set of two classes with 300 images each, whose red value is their number."""
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for name, green in (("cat", 0), ("dog", 255)):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for number in range(300):
            Image.new("RGB", (4, 4), (number % 256, green, number // 256)).save(folder / f"{number:03d}.png")
    ensure_hub.cache_clear()
    return f"hf:{tmp_path / 'pets'}"


def test_a_data_set_of_the_hub_is_read_with_its_labels_and_their_names_in_mixed_order(hub: str):
    pytest.importorskip("datasets")
    index = build_index(DataConfig(path=hub))
    assert (index.num_rows, index.class_names) == (600, ("cat", "dog"))
    rows = read_groups(index, range(index.num_groups))
    pixels = np.stack([np.asarray(_opened(encoded))[0, 0] for encoded in rows.encoded])
    assert (pixels[:, 1] // 255).tolist() == rows.label.tolist() == all_labels(index).tolist()
    assert len({tuple(pixel) for pixel in pixels}) == 600
    assert 64 < rows.label[:256].sum() < 192  # the first row group has both classes
    folder = ensure_hub(hub)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    ensure_hub.cache_clear()  # as on another node
    assert {file.name: file.read_bytes() for file in ensure_hub(hub).iterdir()} == before
    assert build_index(DataConfig(path=hub)).fingerprint == index.fingerprint


def _opened(encoded) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def test_a_split_that_is_not_there_and_a_missing_library_are_told(hub: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    with pytest.raises(UsageError, match=r"cannot be loaded: .*test"):
        build_index(DataConfig(path=f"{hub}:test"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'ray-sassl\[hf\]'"):
        build_index(DataConfig(path=hub))


def test_names_of_the_hub_have_their_parts_and_are_data():
    assert hub_name("hf:cifar10") == HubName("cifar10", None, "train", None)
    assert hub_name("hf:a/b@main:test:small") == HubName("a/b", "main", "test", "small")
    assert is_data("hf:a/b:test")
    assert run_name("hf:a/b:test") == "b"
    with pytest.raises(UsageError, match="hf:OWNER/NAME"):
        check_there(DataConfig(path="hf:"))


def test_the_verbs_that_take_a_path_take_a_name_of_the_hub(hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("COLUMNS", "200")
    code, output = call_main(["data", "inspect", hub, "--out", str(tmp_path / "sheet.png")], monkeypatch)
    assert code == 0, output
    assert "600 in" in output
