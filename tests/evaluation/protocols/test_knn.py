import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ray_sassl.evaluation import Evaluation, FixedFeatures, LabeledFeatures, geometry
from ray_sassl.evaluation.protocols import knn
from ray_sassl.process.errors import UsageError

CPU = torch.device("cpu")


def _data(num: int, seed: int, num_classes: int = 7) -> LabeledFeatures:
    rng = np.random.default_rng(seed)
    return LabeledFeatures(rng.normal(size=(num, 5)).astype(np.float32), rng.integers(0, num_classes, num))


def _evaluated(train: LabeledFeatures, test: LabeledFeatures, **options: float) -> Evaluation:
    return knn.Config(**options).build().evaluate(FixedFeatures(train, test))


def _values(*args, **options) -> dict[str, float]:
    return {name: score.value for name, score in _evaluated(*args, **options).scores.items()}


def _reference_votes(train: LabeledFeatures, x: np.ndarray, k: int, temperature: float) -> list[float]:
    """Section 3.4 of Wu et al. 2018, one neighbor at a time in float64."""
    cosine = [float(row @ x / math.sqrt((row @ row) * (x @ x))) for row in train.features.astype(np.float64)]
    votes = [0.0] * (int(train.labels.max()) + 1)
    for i in sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]:
        votes[train.labels[i]] += math.exp(cosine[i] / temperature)
    return votes


@pytest.mark.parametrize("max_similarities", [1, 200, 2**25])
def test_votes_equal_the_equation_in_blocks_of_any_size(max_similarities, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_SIMILARITIES", max_similarities)
    train, test = _data(60, 0), _data(9, 1)
    votes = torch.cat(list(knn.knn_votes(train.features, train.labels, test.features, 11, 0.1, CPU)))
    for row, x in zip(votes.double(), test.features.astype(np.float64), strict=True):
        expected = torch.tensor(_reference_votes(train, x, 11, 0.1), dtype=torch.float64)
        torch.testing.assert_close(row / row.sum(), expected / expected.sum(), rtol=1e-5, atol=1e-6)


def test_the_train_set_finds_itself_with_one_neighbor():
    train = _data(50, 0)
    assert _values(train, train, k=1) == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}


def test_the_length_of_features_does_not_matter():
    train, test = _data(60, 0), _data(40, 1)
    scaled = LabeledFeatures(train.features * np.linspace(0.1, 9, 60, dtype=np.float32)[:, None], train.labels)
    assert _values(train, test, k=5) == _values(scaled, test, k=5)


def test_of_a_small_train_set_all_vote_and_the_result_says_how_many():
    assert _evaluated(_data(30, 0), _data(5, 1), k=200).details["k"] == 30


def test_a_tiny_temperature_does_not_overflow():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(num, 4)).astype(np.float32) for num in (20, 5)]
    (votes,) = knn.knn_votes(features[0], np.arange(20) % 3, features[1], 10, 1e-4, CPU)
    assert torch.isfinite(votes).all()


def test_top5_is_left_out_of_five_classes():
    assert "top5" not in _values(_data(30, 0, 5), _data(5, 1, 5))


def test_features_of_another_width_are_refused():
    narrow = LabeledFeatures(np.ones((3, 4), np.float32), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="5 wide, test features 4"):
        _evaluated(_data(30, 0), narrow)


def test_features_that_are_not_finite_are_refused():
    broken = LabeledFeatures(np.full((3, 5), np.nan, np.float32), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="test features are not all finite"):
        _evaluated(_data(30, 0), broken)


@pytest.mark.parametrize("k", [1, 20])
def test_classes_equal_those_of_scikit_learn(k):
    train, test = _data(300, 0), _data(200, 1)
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = reference.fit(train.features.astype(np.float64), train.labels).predict(test.features.astype(np.float64))
    predictions = _evaluated(train, test, k=k, temperature=0.07).predictions
    assert predictions is not None
    assert predictions.predicted.tolist() == expected.tolist()
    assert predictions.sample_id.tolist() == list(range(200))


def test_shuffled_labels_score_chance():
    rng = np.random.default_rng(3)
    labels = np.arange(2000) % 4
    features = (np.eye(4)[labels] * 8 + rng.normal(size=(2000, 4))).astype(np.float32)
    told_apart = LabeledFeatures(features, labels)
    assert _values(told_apart, told_apart)["top1"] == 1.0
    train, test = (LabeledFeatures(features, rng.permutation(labels)) for _ in range(2))
    top1 = _evaluated(train, test, k=50).scores["top1"]
    assert top1.low is not None
    assert top1.high is not None
    assert top1.low - 0.02 < 0.25 < top1.high + 0.02
