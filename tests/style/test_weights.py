from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from ray_sassl.style.weights import (
    BadWeightsError,
    MissingWeightsError,
    PublishedWeights,
    WeightsFile,
    add_weights,
    fetch_weights,
    install_weights,
    load_weights,
    missing_files,
    read_weights,
    verify_weights,
    weights_path,
)

CONTENTS = {"one.bin": b"\1\2\3\4" * 10, "two.bin": b"\5\6" * 7}


def _published(code_space: str = "toy-v1", addresses: dict[str, tuple[str, ...]] | None = None) -> PublishedWeights:
    files = tuple(
        WeightsFile(name, (addresses or {}).get(name, ()), len(content), hashlib.sha256(content).hexdigest())
        for name, content in CONTENTS.items()
    )

    def convert(contents: dict[str, bytes]) -> dict[str, torch.Tensor]:
        assert contents == CONTENTS
        return {name: torch.tensor(list(content), dtype=torch.float32).reshape(-1, 2) for name, content in contents.items()}

    return PublishedWeights("toy", "A toy", files, "CC0", "nobody", "none", code_space, convert)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path) -> list[Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def test_added_files_become_tensors(files):
    weights = _published()
    assert [name for _, weights in add_weights([weights], files) for name in [weights.name]] == ["toy", "toy"]
    assert load_weights(weights)["two.bin"].tolist() == [[5.0, 6.0]] * 7
    assert missing_files(weights) == []


def test_files_may_be_added_one_by_one(files):
    weights = _published()
    add_weights([weights], files[:1])
    assert missing_files(weights) == ["two.bin"]
    with pytest.raises(MissingWeightsError, match="not on this machine"):
        load_weights(weights)
    add_weights([weights], files[1:])
    assert set(load_weights(weights)) == set(CONTENTS)


def test_a_file_may_have_another_name(files):
    renamed = files[0].rename(files[0].with_name("download (1)"))
    add_weights([_published()], [renamed, files[1]])
    assert set(load_weights(_published())) == set(CONTENTS)


def test_a_truncated_file_is_refused_before_it_is_parsed(files):
    files[0].write_bytes(files[0].read_bytes()[:-3])
    with pytest.raises(BadWeightsError, match=r"not the published one\.bin: it has 37 bytes and should have 40"):
        add_weights([_published()], files)
    assert not weights_path(_published()).exists()


def test_a_foreign_file_is_refused_with_the_names_of_what_is_known(tmp_path):
    (tmp_path / "else.bin").write_bytes(b"else")
    with pytest.raises(BadWeightsError, match=r"not one of the published files \(one\.bin, two\.bin\)"):
        add_weights([_published()], [tmp_path / "else.bin"])


def test_missing_weights_say_how_to_get_them():
    with pytest.raises(MissingWeightsError, match=r"weights fetch toy.*CC0.*weights add.* takes one\.bin and two\.bin"):
        load_weights(_published())


def test_fetched_files_are_checked_and_converted_once(files):
    weights = _published(addresses={path.name: (path.as_uri(),) for path in files})
    told: dict[str, int] = {}
    path = fetch_weights(weights, told.__setitem__)
    assert told == {name: len(content) for name, content in CONTENTS.items()}
    for file in files:
        file.unlink()
    assert fetch_weights(weights) == path
    assert set(load_weights(weights)) == set(CONTENTS)


@pytest.mark.parametrize("place", [3, 60, -2])
def test_a_damaged_cache_is_found_and_the_message_says_how_to_fix_it(files, place):
    weights = _published()
    add_weights([weights], files)
    content = bytearray(weights_path(weights).read_bytes())
    content[place] ^= 0x40
    weights_path(weights).write_bytes(content)
    for check in (load_weights, verify_weights):
        with pytest.raises(BadWeightsError, match="weights fetch toy"):
            check(weights)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_cache_is_found_out(files, length):
    weights = _published()
    add_weights([weights], files)
    weights_path(weights).write_bytes(weights_path(weights).read_bytes()[:length])
    with pytest.raises(BadWeightsError, match="damaged"):
        load_weights(weights)


def test_weights_of_another_network_are_refused(files):
    add_weights([_published()], files)
    with pytest.raises(BadWeightsError, match="has weights of toy-v1, not of toy-v2"):
        load_weights(_published("toy-v2"))


def test_a_shared_path_is_used_if_given(files, tmp_path, monkeypatch):
    add_weights([_published()], files)
    shared = tmp_path / "shared.safetensors"
    weights_path(_published()).rename(shared)
    assert set(load_weights(_published(), str(shared))) == set(CONTENTS)
    with pytest.raises(MissingWeightsError, match=r"no weights .*other\.safetensors"):
        load_weights(_published(), str(tmp_path / "other.safetensors"))


def test_weights_that_are_handed_over_are_checked_and_installed(files, monkeypatch, tmp_path):
    weights = _published()
    add_weights([weights], files)
    content = read_weights(weights)
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(BadWeightsError, match="the received file is damaged"):
        install_weights(weights, content[:-1])
    install_weights(weights, content)
    verify_weights(weights)


def test_a_damaged_original_is_found_out(files):
    weights = _published()
    add_weights([weights], files)
    original = next((weights_path(weights).with_suffix("")).glob("one.bin"))
    original.write_bytes(b"x" * 40)
    with pytest.raises(BadWeightsError, match="sha256"):
        verify_weights(weights)
