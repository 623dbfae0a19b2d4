"""The linear classifier that goes along with an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize

from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.exporting.embedding import Embedder
from ray_sassl.exporting.encoder import load_encoder
from ray_sassl.exporting.head import fit_head, fit_layer
from ray_sassl.process.errors import UsageError
from tests.exporting.conftest import MakeRun, write_images

CPU = torch.device("cpu")


@pytest.fixture
def embedder(make_run: MakeRun) -> Embedder:
    return Embedder(load_encoder(make_run()), CPU, 1)


def _objective(flat: np.ndarray, x: np.ndarray, labels: np.ndarray, num_classes: int, l2: float) -> float:
    weight, bias = flat[: num_classes * x.shape[1]].reshape(num_classes, -1), flat[num_classes * x.shape[1] :]
    logits = x @ weight.T + bias
    largest = logits.max(1, keepdims=True)
    log_sum = largest[:, 0] + np.log(np.exp(logits - largest).sum(1))
    return float((log_sum - logits[np.arange(len(x)), labels]).mean() + l2 / 2 * (weight**2).sum())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_layer_minimizes_the_stated_objective_on_standardized_features(num_classes):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % num_classes
    x = (rng.normal(size=(60, 4)) * [1, 5, 0.1, 1] + labels[:, None] + [0, 30, 0, -3]).astype(np.float32)
    l2 = 0.05
    layer = fit_layer(x, labels, l2, 500)
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    z = (x - mean) / deviation
    start = np.zeros(num_classes * 5)
    best = optimize.minimize(_objective, start, (z, labels, num_classes, l2), method="BFGS", options={"gtol": 1e-8})
    expected = z @ best.x[: num_classes * 4].reshape(num_classes, 4).T + best.x[num_classes * 4 :]
    with torch.inference_mode():
        found = layer(torch.from_numpy(x)).numpy()
    if num_classes == 2:  # one row of weights instead of two: the same classes, with half the penalty
        assert ((found[:, 1] > found[:, 0]) == (expected[:, 1] > expected[:, 0])).all()
    else:
        np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=5e-3)


def test_a_feature_that_never_changes_does_no_harm():
    x = np.stack([np.full(20, 3.0), np.arange(20.0)], axis=1).astype(np.float32)
    layer = fit_layer(x, (np.arange(20) > 9).astype(int), 1e-4, 500)
    assert torch.isfinite(layer.weight).all()
    assert (layer(torch.from_numpy(x)).argmax(1).numpy() == (np.arange(20) > 9)).all()


def test_a_head_is_fitted_on_train_and_measured_on_test_images(embedder: Embedder, tmp_path: Path):
    head = fit_head(embedder, DataConfig(path=f"{tmp_path}/train.parquet"), DataConfig(path=f"{tmp_path}/test.parquet"))
    assert (head.num_train, head.num_test, head.layer.out_features) == (60, 42, 3)
    assert head.train_top1 == 1.0
    assert head.test_top1 is not None
    assert head.test_top1 > 0.9
    alone = fit_head(embedder, DataConfig(path=f"{tmp_path}/train.parquet"), None)
    assert torch.equal(alone.layer.weight, head.layer.weight)
    assert alone.test_top1 is None


def test_labels_that_no_classifier_can_be_fitted_on_are_named(embedder: Embedder, tmp_path: Path):
    write_images(tmp_path / "plain.parquet", 20, labeled=False)
    with pytest.raises(UsageError, match="has no labeled images"):
        fit_head(embedder, DataConfig(path=f"{tmp_path}/plain.parquet", label_column=None), None)
    write_images(tmp_path / "two.parquet", 2)
    write_images(tmp_path / "one.parquet", 1)
    with pytest.raises(UsageError, match="images of one class only"):
        fit_head(embedder, DataConfig(path=f"{tmp_path}/one.parquet"), None)


def test_a_class_without_train_images_is_named(embedder: Embedder, tmp_path: Path):
    write_images(tmp_path / "gap.parquet", 30, bad=tuple(range(1, 30, 3)))
    with pytest.raises(UsageError, match="has no images of class 1, so no classifier of 3 classes"):
        fit_head(embedder, DataConfig(path=f"{tmp_path}/gap.parquet", max_bad_fraction=0.5), None)
    with pytest.raises(TooManyBadRowsError):
        fit_head(embedder, DataConfig(path=f"{tmp_path}/gap.parquet"), None)
