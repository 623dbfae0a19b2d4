"""Few-shot classification against scikit-learn's classifiers and closed forms."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import NearestCentroid

from ray_sassl.evaluation import Evaluation, FixedFeatures, LabeledFeatures
from ray_sassl.evaluation.protocols import few_shot
from ray_sassl.process.errors import UsageError

LABELS = np.array([1, 2, 4])


def _data(num: int, seed: int, spread: float = 1.0) -> LabeledFeatures:
    """Clouds around three centers far from the origin; the labels have gaps."""
    rng = np.random.default_rng(seed)
    labels = LABELS[np.arange(num) % 3]
    centers = np.random.default_rng(9).normal(size=(5, 12))
    return LabeledFeatures((centers[labels] + spread * rng.normal(size=(num, 12)) + 20).astype(np.float32), labels)


def _evaluated(train: LabeledFeatures, test: LabeledFeatures, **options) -> Evaluation:
    return few_shot.Config(**{"num_draws": 5} | options).build().evaluate(FixedFeatures(train, test))


@pytest.mark.parametrize(
    ("fit", "reference"), [(few_shot.fit_ridge, RidgeClassifier(alpha=1.0)), (few_shot.fit_centroids, NearestCentroid())]
)
def test_classifiers_choose_as_scikit_learns_do(fit, reference):
    train, test = _data(30, 0), _data(300, 1)
    mean = train.features.mean(0, dtype=np.float64)
    x_train, x_test = (few_shot.centered_to_unit_length(part.features, mean) for part in (train, test))
    weight, bias = fit(x_train, train.labels, 1.0)
    chosen = (x_test @ weight.T + bias).argmax(1)
    expected = reference.fit(x_train.astype(np.float64), train.labels).predict(x_test.astype(np.float64))
    assert chosen.tolist() == expected.tolist()


def test_ridge_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 6)), np.arange(40) % 3
    weight, bias = few_shot.fit_ridge(x, labels, 0.5)
    centered, targets = x - x.mean(0), 2.0 * np.eye(3)[labels] - 1
    expected = np.linalg.solve(centered.T @ centered + 0.5 * np.eye(6), centered.T @ (targets - targets.mean(0))).T
    np.testing.assert_allclose(weight, expected, atol=1e-5)
    np.testing.assert_allclose(bias, targets.mean(0) - expected @ x.mean(0), atol=1e-5)


@pytest.mark.parametrize("classifier", ["ridge", "centroid"])
def test_more_shots_score_higher_and_vary_less(classifier):
    result = _evaluated(_data(300, 0, 2.0), _data(600, 1, 2.0), shots=(1, 5, 20), num_draws=30, classifier=classifier)
    means = [result.scores[f"{shots}_shot_top1"].value for shots in (1, 5, 20)]
    deviations = [result.details[f"{shots}_shot"]["deviation_over_draws"] for shots in (1, 5, 20)]
    assert means == sorted(means)
    assert deviations[0] > deviations[2]
    assert 1 / 3 < means[0] < 0.9


def test_separate_clouds_need_one_image_each():
    assert _evaluated(_data(30, 0, 0.01), _data(30, 1, 0.01), shots=(1,)).scores["1_shot_top1"].value == 1.0


def test_shuffled_labels_score_chance():
    rng = np.random.default_rng(0)
    train, test = (LabeledFeatures(part.features, rng.permutation(part.labels)) for part in (_data(600, 0), _data(600, 1)))
    for score in _evaluated(train, test, num_draws=20).scores.values():
        assert score.value == pytest.approx(1 / 3, abs=0.03)


def test_the_same_seed_gives_the_same_draws_and_another_gives_others():
    train, test = _data(60, 0), _data(60, 1)
    first, again, other = (_evaluated(train, test, seed=seed).details["5_shot"]["top1_by_draw"] for seed in (0, 0, 1))
    assert first == again != other


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UsageError, match="class 1 has 4 train images, fewer than the 5 to draw"):
        _evaluated(_data(12, 0), _data(9, 1), shots=(5,))
