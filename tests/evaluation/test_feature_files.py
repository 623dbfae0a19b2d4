"""Features in files that are mapped into memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ray_sassl.evaluation import LabeledFeatures, feature_files
from ray_sassl.evaluation.feature_files import FeatureSpill, read_features, write_features
from ray_sassl.process.errors import UsageError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))


def _part(start: int, num: int, scale: float = 1.0) -> LabeledFeatures:
    rng = np.random.default_rng(start)
    return LabeledFeatures(
        (scale * rng.normal(size=(num, 3))).astype(np.float32), rng.integers(0, 5, num), np.arange(start, start + num) * 2
    )


def _spilled(parts: list[LabeledFeatures], dtype: str = "float16") -> LabeledFeatures:
    spill = FeatureSpill(dtype)
    for part in parts:
        spill.add(part)
    return spill.result()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_portions_in_any_order_become_one_mapped_file_that_no_folder_shows(tmp_path: Path, order: tuple[int, ...]):
    parts = [_part(0, 7), _part(7, 1), _part(8, 12)]
    found = _spilled([parts[place] for place in order])
    assert isinstance(found.features, np.memmap)
    assert found.features.dtype == np.float16
    assert np.array_equal(found.features, np.concatenate([part.features for part in parts]).astype(np.float16))
    assert np.array_equal(found.labels, np.concatenate([part.labels for part in parts]))
    assert found.sample_id.tolist() == (2 * np.arange(20)).tolist()
    assert list((tmp_path / "cache" / "features").iterdir()) == []


@pytest.mark.parametrize("scale", [1e6, 1e-4])
def test_features_that_half_precision_cannot_hold_stay_as_they_are(tmp_path: Path, scale: float):
    parts = [_part(0, 7), _part(7, 5, scale)]
    found = _spilled(parts)
    assert found.features.dtype == np.float32
    assert np.array_equal(found.features[7:], parts[1].features)
    np.testing.assert_allclose(found.features[:7], parts[0].features, rtol=1e-3)
    with (tmp_path / "kept").open("wb") as file:
        write_features(file, parts[1], {})
    assert np.array_equal(read_features(str(tmp_path / "kept"))[0].features, parts[1].features)


def test_what_must_stay_exact_does():
    part = _part(0, 9)
    assert np.array_equal(_spilled([part], "float32").features, part.features)


def test_a_kept_file_is_safetensors_and_comes_back_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_files, "CHUNK_BYTES", 60)  # several chunks
    part, path = _spilled([_part(0, 50)]), tmp_path / "kept.safetensors"
    with path.open("wb") as file:
        write_features(file, part, {"facts": "µ"})
    found, metadata = read_features(str(path))
    assert metadata == {"facts": "µ"}
    tensors = safetensors.numpy.load_file(path)
    for name, column, other in (("features", found.features, part.features), ("label", found.labels, part.labels)):
        assert np.array_equal(column, other)
        assert np.array_equal(tensors[name], other)
    assert np.array_equal(found.sample_id, part.sample_id)
    assert isinstance(found.features, np.memmap)


def _damaged(content: bytes, change: str) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if change == "cut":
        return content[:-1]
    if change == "header":
        return content[:8] + b"?" * length + content[8 + length :]
    entry = {"type": {"dtype": "F8"}, "shape": {"shape": [-1, 3]}, "offsets": {"data_offsets": [0, 10**15]}, "rows": {"shape": [3, 5]}}
    header["features"] |= entry[change]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("change", ["cut", "header", "type", "shape", "offsets", "rows"])
def test_a_damaged_file_is_an_error_and_no_wrong_features(tmp_path: Path, change: str):
    path = tmp_path / "kept"
    with path.open("wb") as file:
        write_features(file, _part(0, 5), {})
    path.write_bytes(_damaged(path.read_bytes(), change))
    with pytest.raises(ValueError):  # noqa: PT011 - several messages
        read_features(str(path))


def test_a_disk_without_room_is_named(monkeypatch: pytest.MonkeyPatch):
    class Full:
        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files, "_temporary", Full)
    with pytest.raises(UsageError, match=r"No space left on device.*RAY_SASSL_CACHE"):
        FeatureSpill().add(_part(0, 5))
