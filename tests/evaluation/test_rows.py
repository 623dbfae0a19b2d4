"""Work on features a chunk at a time: equal to work on all of them at once, in memory that does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sassl.evaluation import FixedFeatures, LabeledFeatures, geometry, rows
from ray_sassl.evaluation.feature_files import FeatureSpill
from ray_sassl.evaluation.protocols.few_shot import Config as FewShot
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.rows import Rows, chunks, mean_of, moments

CONFIGS = {
    "knn": Knn(k=9),
    "linear": Linear(l2=1e-2),
    "grid": Linear(l2="grid", num_l2=4),
    "sgd": Linear(solver="sgd", epochs=3, learning_rate=(0.3, 1.0)),
    "few_shot": FewShot(num_draws=3, shots=(2,)),
}


def _mapped(num: int, seed: int) -> LabeledFeatures:
    """Clouds of seven classes, in a mapped file."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 7
    centers = np.random.default_rng(9).normal(size=(7, 12))
    spill = FeatureSpill()
    spill.add(LabeledFeatures((centers[labels] + 0.8 * rng.normal(size=(num, 12)) + 3).astype(np.float32), labels, np.arange(num)))
    return spill.result()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LabeledFeatures, LabeledFeatures]:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    return _mapped(350, 0), _mapped(140, 1)


def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of eleven rows, of which nothing is kept."""
    for module in (rows, geometry, *(sys.modules[type(config).__module__] for config in CONFIGS.values())):
        for name, value in (("CHUNK_BYTES", 4 * 12 * 11), ("KEPT_BYTES", 0)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("ray_sassl.evaluation.logistic.CHUNK_BYTES", 4 * 12 * 11)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_protocol_finds_the_same_in_small_chunks_as_at_once(name: str, parts, monkeypatch: pytest.MonkeyPatch):
    whole = CONFIGS[name].build().evaluate(FixedFeatures(*parts))
    _small_chunks(monkeypatch)
    found = CONFIGS[name].build().evaluate(FixedFeatures(*parts))
    for score, value in whole.scores.items():
        assert value.value > 0.3
        assert found.scores[score].value == pytest.approx(value.value, abs=0.011), score  # one image may be on the edge
    if whole.predictions is not None and found.predictions is not None:
        assert (whole.predictions.predicted == found.predictions.predicted).mean() > 0.985


@pytest.mark.parametrize("name", ["knn", "linear", "few_shot"])
def test_half_precision_moves_scores_by_little(name: str, parts):
    exact = [LabeledFeatures(part.features.astype(np.float32), part.labels, part.sample_id) for part in parts]
    scores = [CONFIGS[name].build().evaluate(FixedFeatures(*both)).scores for both in (parts, exact)]
    for score, value in scores[1].items():
        assert scores[0][score].value == pytest.approx(value.value, abs=0.011)


def test_moments_are_those_of_all_rows(parts, monkeypatch: pytest.MonkeyPatch):
    features = parts[0].features
    _small_chunks(monkeypatch)
    x = features.astype(np.float64)
    x[:, 3] = 7.0
    mean, deviation = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.delete(deviation, 3), np.delete(x.std(0), 3), rtol=1e-6)
    assert deviation[3] == 1
    np.testing.assert_allclose(mean_of(features), features.astype(np.float64).mean(0), rtol=1e-6)


def test_rows_come_by_chunks_and_by_their_places(parts, monkeypatch: pytest.MonkeyPatch):
    features = parts[0].features
    found = moments(features)
    expected = ((features - found[0]) / found[1]).astype(np.float32)
    every = Rows(features, found)
    _small_chunks(monkeypatch)
    unkept = Rows(features, found)
    assert every.kept is not None
    assert unkept.kept is None
    places = np.array([300, 2, 2, 40])
    for x in (every, unkept):
        assert np.array_equal(np.concatenate(list(x)), expected)
        assert np.array_equal(x.take(places), expected[places])
        part = x.part(np.arange(350) % 3 == 0)
        assert len(part) == 117
        assert np.array_equal(np.concatenate(list(part)), expected[::3])
        assert np.array_equal(part.part(np.array([5, 1])).take(np.array([1])), expected[[3]])
    assert [len(chunk) for chunk in chunks(features)] == [11] * 31 + [9]
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def test_the_nearest_are_found_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(13, 6)), rng.normal(size=(100, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    cosine = unit[0] @ unit[1].T
    for at_once in (3, 7, 100):
        monkeypatch.setattr(geometry, "CHUNK_BYTES", 4 * 6 * at_once)
        monkeypatch.setattr(geometry, "KEPT_BYTES", 4 * 6 * (at_once % 2) * 13)
        for k in (1, 5, 100):
            similarity, places = geometry.nearest(queries.astype(np.float16), torch.from_numpy(bank), k)
            assert places.shape == (13, k)
            np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :k], atol=2e-3)
            np.testing.assert_allclose(np.take_along_axis(cosine, places.numpy(), 1), similarity, atol=2e-3)


_CHILD = """
import json, sys
import numpy as np
import torch
from ray_sassl.evaluation import FixedFeatures, LabeledFeatures, geometry, logistic, rows
from ray_sassl.evaluation.feature_files import FeatureSpill
from ray_sassl.evaluation.protocols import few_shot, knn, linear

torch.set_num_threads(1)
for module in (rows, geometry, logistic, few_shot, knn, linear):
    module.CHUNK_BYTES = 2**22
for module in (rows, geometry, few_shot):
    module.KEPT_BYTES = int(sys.argv[2])
width = 512

def mapped(num):
    spill = FeatureSpill()
    noise = np.random.default_rng(num).normal(size=(1000, width)).astype(np.float32)
    for start in range(0, num, 1000):
        labels = np.arange(1000) % 5
        spill.add(LabeledFeatures(noise + labels[:, None], labels, np.arange(start, start + 1000)))
    return spill.result()

every = {
    "knn": knn.Config(k=5, device="cpu"),
    "linear": linear.Config(max_iterations=2),
    "sgd": linear.Config(solver="sgd", epochs=1, batch_size=2000, device="cpu"),
    "few_shot": few_shot.Config(num_draws=1, shots=(2,)),
}
configs = {name: every[name] for name in sys.argv[3:]}
small, test = mapped(3000), mapped(1000)
for config in configs.values():  # what is loaded on the first use
    config.build().evaluate(FixedFeatures(small, test))
large = mapped(int(sys.argv[1]))

def peak():  # ru_maxrss would begin with that of the process that started this one
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

before = peak()
for name, config in configs.items():
    config.build().evaluate(FixedFeatures(large, test))
    configs[name] = peak() - before
print(json.dumps(configs))
"""
_NUM = 100_000


def _growth(tmp_path: Path, kept_bytes: int, *names: str) -> dict[str, int]:
    """By how many bytes the memory of a process has grown at most after each protocol, on 100,000 x 512 train features."""
    environment = {"PYTHONPATH": ":".join(sys.path), "RAY_SASSL_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    words = [sys.executable, "-c", _CHILD, str(_NUM), str(kept_bytes), *names]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process held at most")
def test_memory_does_not_grow_with_the_train_images(tmp_path: Path):
    in_float32 = 4 * 512 * _NUM  # 205 MB
    growth = _growth(tmp_path, 2**22, "knn", "linear", "sgd", "few_shot")
    assert max(growth.values()) < 0.35 * in_float32, growth  # less than the float16 file, and the same for twice the rows
    kept = _growth(tmp_path, 2**40, "linear")  # so that this would be seen
    assert kept["linear"] > 0.8 * in_float32, kept
