from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from ray_sassl.style.bank import BadBankError, StyleBank


@pytest.fixture
def bank() -> StyleBank:
    codes = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    return StyleBank.of(codes, [f"style-{number}.jpg" for number in range(40)], "test-v1")


def test_a_saved_bank_comes_back_whole(bank, tmp_path):
    bank.save(tmp_path / "styles.safetensors")
    back = StyleBank.load(tmp_path / "styles.safetensors", "test-v1")
    np.testing.assert_array_equal(back.codes, bank.codes)
    np.testing.assert_array_equal(back.covariance, bank.covariance)
    assert (back.names, back.bundle_id) == (bank.names, "test-v1")


def test_a_bank_of_another_stylizer_is_refused_by_both_names(bank, tmp_path):
    bank.save(tmp_path / "styles.safetensors")
    with pytest.raises(BadBankError, match=r"codes of test-v1, which mean nothing to other-v2"):
        StyleBank.load(tmp_path / "styles.safetensors", "other-v2")


def test_a_missing_bank_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(BadBankError, match="ray-sassl stylize bank"):
        StyleBank.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("cut", [0, 4, 40, 300, -1])
def test_a_cut_bank_is_refused(bank, tmp_path, cut):
    path = tmp_path / "styles.safetensors"
    bank.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadBankError, match=r"styles\.safetensors"):
        StyleBank.load(path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    save_file({"codes": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(BadBankError, match="not a style bank"):
        StyleBank.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, "null"),
        ({}, "[]"),
        ({"mean": np.zeros((1, 6))}, None),
        ({"covariance": np.zeros((3, 3))}, None),
        ({"codes": np.zeros((0, 6), np.float32)}, "[]"),
        ({"codes": np.full((5, 6), np.nan, np.float32)}, None),
    ],
)
def test_a_bank_whose_parts_do_not_fit_together_is_refused(bank, tmp_path, change: dict[str, np.ndarray], names: str | None):
    tensors = {"codes": bank.codes, "mean": bank.mean, "covariance": bank.covariance} | change
    metadata = {"format": "ray-sassl style bank 1", "bundle_id": bank.bundle_id, "names": names or json.dumps(bank.names)}
    (tmp_path / "bank.safetensors").write_bytes(save(tensors, metadata))
    with pytest.raises(BadBankError, match=r"shapes|not finite"):
        StyleBank.load(tmp_path / "bank.safetensors")


def test_a_bank_without_styles_is_refused():
    with pytest.raises(BadBankError, match="at least one style"):
        StyleBank.of(np.zeros((0, 4), np.float32), [], "test-v1")


def test_statistics_are_those_of_numpy(bank):
    np.testing.assert_allclose(bank.mean, bank.codes.astype(np.float64).mean(0))
    np.testing.assert_allclose(bank.covariance, np.cov(bank.codes.astype(np.float64).T, bias=True), atol=1e-12)


def test_every_style_is_picked_equally_often(bank):
    picked = bank.pick((np.arange(4000) + 0.5) / 4000)
    np.testing.assert_array_equal(np.bincount(picked), np.full(40, 100))
    assert bank.pick(np.array([np.nextafter(1.0, 0)])).tolist() == [39]


def test_gaussian_codes_have_the_banks_mean_and_covariance(bank):
    codes = bank.gaussian_codes(np.random.default_rng(1).normal(size=(200_000, 6))).astype(np.float64)
    np.testing.assert_allclose(codes.mean(0), bank.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(codes.T, bias=True), bank.covariance, atol=0.4)


def test_fewer_styles_than_dimensions_give_codes_within_their_span():
    codes = np.array([[0.0, 1, 2, 3], [2, 1, 0, 3]], np.float32)
    bank = StyleBank.of(codes, ["a", "b"], "test-v1")
    drawn = bank.gaussian_codes(np.random.default_rng(0).normal(size=(50, 4)))
    share = (drawn[:, 0] - 0) / 2  # on the line through both codes
    np.testing.assert_allclose(drawn, codes[0] + share[:, None] * (codes[1] - codes[0]), atol=1e-5)
