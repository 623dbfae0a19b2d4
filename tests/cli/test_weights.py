from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ray_sassl.cli import app
from ray_sassl.process.errors import UsageError
from ray_sassl.style.weights import BadWeightsError, MissingWeightsError


def _run(*args: str) -> str:
    result = CliRunner().invoke(app, ["weights", *args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))


def test_published_files_are_added_listed_verified_and_found(shared_dir):
    assert "0 of 2 files" in _run("list")
    files = sorted(str(path) for path in (shared_dir / "stylizer").glob("*.tflite"))
    assert "still needs style_transfer_f16_384.tflite" in _run("add", files[0]).replace("\n", " ")
    assert "1 of 2 files" in _run("list")
    _run("add", files[1])
    assert "complete and as published" in _run("verify")
    assert _run("path", "magenta").strip().endswith(".safetensors")


def test_a_cut_published_file_is_refused(shared_dir, tmp_path):
    cut = tmp_path / "style_transfer_f16_384.tflite"
    cut.write_bytes((shared_dir / "stylizer" / cut.name).read_bytes()[:400_000])
    with pytest.raises(BadWeightsError, match="400,000 bytes and should have 421,104"):
        _run("add", str(cut))


def test_without_weights_the_path_is_an_error_that_says_how_to_get_them():
    with pytest.raises(MissingWeightsError, match="weights fetch magenta"):
        _run("path", "magenta")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'magenta'"):
        _run("fetch", "magneta")
