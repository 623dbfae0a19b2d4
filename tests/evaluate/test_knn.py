import math

import numpy as np
import pytest
import torch

from ray_sassl.evaluate import LabelledFeatures, knn
from ray_sassl.plugins import UsageError


def _data(num: int, seed: int, num_classes: int = 7) -> LabelledFeatures:
    rng = np.random.default_rng(seed)
    return LabelledFeatures(rng.normal(size=(num, 5)).astype(np.float32), rng.integers(0, num_classes, num))


def _reference_votes(train: LabelledFeatures, x: np.ndarray, k: int, temperature: float) -> list[float]:
    """Section 3.4 of Wu et al. 2018, one neighbour at a time in float64."""
    cosine = [float(row @ x / math.sqrt((row @ row) * (x @ x))) for row in train.features.astype(np.float64)]
    votes = [0.0] * (int(train.labels.max()) + 1)
    for i in sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]:
        votes[train.labels[i]] += math.exp(cosine[i] / temperature)
    return votes


@pytest.mark.parametrize("max_similarities", [1, 200, 2**25])
def test_votes_equal_the_equation_in_blocks_of_any_size(max_similarities, monkeypatch):
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", max_similarities)
    train, test = _data(60, 0), _data(9, 1)
    votes = knn.knn_votes(*map(torch.from_numpy, (train.features, train.labels, test.features)), k=11, temperature=0.1)
    for row, x in zip(votes.double(), test.features.astype(np.float64), strict=True):
        expected = torch.tensor(_reference_votes(train, x, 11, 0.1), dtype=torch.float64)
        torch.testing.assert_close(row / row.sum(), expected / expected.sum(), rtol=1e-5, atol=1e-6)


def test_the_train_set_finds_itself_with_one_neighbour():
    train = _data(50, 0)
    assert knn.Config(k=1).build().evaluate(train, train) == {"top1": 1.0, "top5": 1.0, "k": 1.0}


def test_the_length_of_features_does_not_matter():
    train, test = _data(60, 0), _data(40, 1)
    scaled = LabelledFeatures(train.features * np.linspace(0.1, 9, 60, dtype=np.float32)[:, None], train.labels)
    probe = knn.Config(k=5).build()
    assert probe.evaluate(train, test) == probe.evaluate(scaled, test)


def test_of_a_small_train_set_all_vote_and_the_result_says_how_many():
    assert knn.Config(k=200).build().evaluate(_data(30, 0), _data(5, 1))["k"] == 30.0


def test_a_tiny_temperature_does_not_overflow():
    votes = knn.knn_votes(torch.randn(20, 4), torch.arange(20) % 3, torch.randn(5, 4), k=10, temperature=1e-4)
    assert torch.isfinite(votes).all()


def test_top5_is_left_out_of_five_classes():
    assert "top5" not in knn.Config().build().evaluate(_data(30, 0, 5), _data(5, 1, 5))


def test_features_of_another_width_are_refused():
    narrow = LabelledFeatures(np.ones((3, 4), np.float32), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="5 wide, test features 4"):
        knn.Config().build().evaluate(_data(30, 0), narrow)


def test_features_that_are_not_finite_are_refused():
    broken = LabelledFeatures(np.full((3, 5), np.nan, np.float32), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="test features are not all finite"):
        knn.Config().build().evaluate(_data(30, 0), broken)
