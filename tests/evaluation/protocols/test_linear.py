import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ray_sassl.evaluation import Evaluation, FixedFeatures, LabeledFeatures, linear_sgd
from ray_sassl.evaluation.protocols import linear
from ray_sassl.process.errors import UsageError
from tests.evaluation.conftest import SmallSubject

CPU = torch.device("cpu")
SGD = {"solver": "sgd", "epochs": 40, "batch_size": 64}


def _data(num: int, seed: int, num_classes: int = 3) -> LabeledFeatures:
    """Gaussian clouds that overlap, in units that differ widely by feature, one feature constant."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    centers = np.random.default_rng(99).normal(size=(num_classes, 8)) * 2
    features = (centers[labels] + rng.normal(size=(num, 8))) * np.logspace(-2, 2, 8) + 50
    features[:, 3] = 4.0
    return LabeledFeatures(features.astype(np.float32), labels.astype(np.int64))


def _evaluated(train: LabeledFeatures, test: LabeledFeatures, **options) -> Evaluation:
    return linear.Config(**options).build().evaluate(FixedFeatures(train, test))


def _by_sgd(
    x: np.ndarray, labels: np.ndarray, epochs: int, l2: float = 1e-4, seed: int = 0, rates: tuple[float, ...] = (1.0,)
) -> list[tuple[np.ndarray, np.ndarray]]:
    batches = linear_sgd.fixed_rows(x, labels, epochs, 64, seed, CPU)
    num_steps = linear_sgd.steps_of(len(x), epochs, 64)
    return linear_sgd.fit_sgd(batches, num_steps, x.shape[1], int(labels.max()) + 1, rates, l2, 0.9, CPU)


def _top1(*args, **options) -> float:
    return _evaluated(*args, **options).scores["top1"].value


@pytest.mark.parametrize("options", [{}, SGD])
def test_separable_clouds_are_distinguished(options):
    result = _evaluated(_data(600, 0), _data(300, 1), **options)
    assert result.scores["top1"].value > 0.9
    assert set(result.scores) == {"top1", "mean_per_class", "train_top1"}


def test_both_solvers_find_the_minimum_of_the_same_objective():
    train = _data(600, 0)
    x = ((train.features - train.features.mean(0)) / np.maximum(train.features.std(0), 1e-3)).astype(np.float32)
    losses = []
    for weight, bias in (linear.fit_lbfgs(x, train.labels, 1e-2, 500)[:2], _by_sgd(x, train.labels, epochs=300, l2=1e-2)[0]):
        cross_entropy = F.cross_entropy(torch.from_numpy(x @ weight.T + bias), torch.from_numpy(train.labels))
        losses.append(cross_entropy.item() + 1e-2 / 2 * float((weight**2).sum()))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_the_penalty_of_two_classes_is_that_of_many():
    train = _data(200, 0, 2)
    x, labels = train.features.astype(np.float64), train.labels
    weight, _, _ = linear.fit_lbfgs(x, labels, 0.3, 500)
    w = torch.zeros(2, x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(torch.from_numpy(x) @ w.T + b, torch.from_numpy(labels)) + 0.15 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(weight[1] - weight[0], (w[1] - w[0]).detach(), atol=5e-3)


@pytest.mark.parametrize("options", [{}, SGD])
def test_the_units_of_the_features_do_not_matter(options):
    train, test = _data(300, 0), _data(200, 1)
    units = np.logspace(-1, 1, 8).astype(np.float32)
    scaled = [LabeledFeatures(part.features * units, part.labels) for part in (train, test)]
    assert _top1(train, test, **options) == pytest.approx(_top1(*scaled, **options), abs=0.011)


def test_two_classes_and_labels_with_gaps_are_scored_right():
    train, test = _data(200, 0, 2), _data(100, 1, 2)
    moved = [LabeledFeatures(part.features, 1 + 5 * part.labels) for part in (train, test)]
    assert _top1(*moved) == _top1(train, test)
    assert _top1(train, test) > 0.9


def test_the_same_seed_gives_the_same_result_to_the_bit():
    x, labels = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32), np.arange(100) % 4
    weights = [_by_sgd(x, labels, epochs=3, seed=seed)[0][0] for seed in (0, 0, 1)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="at least two classes"):
        _evaluated(_data(10, 0, 1), _data(10, 1, 1))


@pytest.mark.parametrize(
    "options",
    [{"epochs": 3}, {"solver": "sgd", "max_iterations": 3}, {"num_l2": 3}, {"seed": 1}, {"augment": True}, SGD | {"validation_share": 0.3}],
)
def test_an_option_of_the_other_solver_is_refused(options):
    with pytest.raises(ValidationError, match="has no effect with"):
        linear.Config(**options)


def test_the_classifier_equals_scikit_learns():
    train, test = _data(300, 0), _data(200, 1)
    scaler = StandardScaler().fit(train.features.astype(np.float64))
    x_train, x_test = (scaler.transform(part.features.astype(np.float64)) for part in (train, test))
    reference = LogisticRegression(C=1 / (1e-3 * 300), tol=1e-8, max_iter=2000).fit(x_train, train.labels)
    weight = linear.fit_lbfgs(x_train, train.labels, 1e-3, 2000)[0]
    np.testing.assert_allclose(weight - weight.mean(0), reference.coef_ - reference.coef_.mean(0), atol=2e-3)
    result = _evaluated(train, test, l2=1e-3, max_iterations=2000)
    assert result.predictions is not None
    assert (result.predictions.predicted == reference.predict(x_test)).mean() > 0.99


def test_the_grid_chooses_on_held_out_train_images_and_fits_again_on_all():
    train, test = _data(300, 0), _data(200, 1)
    result = _evaluated(train, test, l2="grid", num_l2=12)
    assert len(result.details["l2_grid"]) == len(result.details["validation_top1"]) == 12
    assert result.details["l2_grid"][0] == pytest.approx(1e5)
    assert result.details["l2_grid"][-1] == pytest.approx(1e-6)
    chosen = result.details["l2"]
    best = max(result.details["validation_top1"])
    assert result.details["validation_top1"][result.details["l2_grid"].index(chosen)] == best
    assert result.scores["top1"] == _evaluated(train, test, l2=chosen).scores["top1"]
    assert result.figures["l2"].startswith(b"\x89PNG")
    assert _evaluated(train, test, l2="grid", num_l2=12).scores == result.scores


def test_the_grids_choice_never_looks_at_test_labels():
    train, test = _data(300, 0), _data(200, 1)
    shuffled = LabeledFeatures(test.features, np.random.default_rng(0).permutation(test.labels))
    assert _evaluated(train, test, l2="grid", num_l2=9).details["l2"] == _evaluated(train, shuffled, l2="grid", num_l2=9).details["l2"]


def test_the_paper_has_45_values_from_1e_minus_6_to_1e5():
    config = linear.Config(l2="grid")
    assert (config.num_l2, config.l2_range) == (45, (1e-6, 1e5))


@pytest.mark.parametrize("options", [{}, SGD, SGD | {"learning_rate": [0.1, 1.0]}, {"l2": "grid", "num_l2": 9}])
def test_shuffled_labels_score_chance(options):
    rng = np.random.default_rng(0)
    train, test = (LabeledFeatures(part.features, rng.permutation(part.labels)) for part in (_data(900, 0), _data(900, 1)))
    top1 = _evaluated(train, test, **options).scores["top1"]
    assert top1.low - 0.02 < 1 / 3 < top1.high + 0.02


def test_an_unconverged_fit_is_reported():
    assert not _evaluated(_data(300, 0), _data(30, 1), l2=1e-6, max_iterations=2).details["converged"]


def test_classifiers_of_several_rates_learn_by_themselves():
    train = _data(300, 0)
    x = train.features / np.maximum(np.abs(train.features).max(0), 1)
    together = _by_sgd(x, train.labels, epochs=5, rates=(0.3, 3.0))
    alone = [_by_sgd(x, train.labels, epochs=5, rates=(rate,))[0] for rate in (0.3, 3.0)]
    for (weight, bias), (weight_alone, bias_alone) in zip(together, alone, strict=True):
        np.testing.assert_allclose(weight, weight_alone, atol=1e-6)
        np.testing.assert_allclose(bias, bias_alone, atol=1e-6)


def test_the_learning_rate_is_chosen_on_held_out_train_images_and_never_by_test_labels():
    train, test = _data(300, 0), _data(200, 1)
    rates = {"learning_rate": [10.0, 1e-4, 1.0]}
    result = _evaluated(train, test, **SGD, **rates)
    details = result.details
    assert details["learning_rates"] == [1e-4, 1.0, 10.0]
    assert details["num_held_out"] == 60
    assert details["learning_rate"] == details["learning_rates"][int(np.argmax(details["validation_top1"]))]
    assert result.scores == _evaluated(train, test, **SGD, learning_rate=details["learning_rate"]).scores
    shuffled = LabeledFeatures(test.features, np.random.default_rng(0).permutation(test.labels))
    assert _evaluated(train, shuffled, **SGD, **rates).details == details
    assert result.figures["learning_rate"].startswith(b"\x89PNG")


CROPS = {"solver": "sgd", "augment": True, "epochs": 4, "batch_size": 16}


def test_crops_go_through_the_encoder_whose_weights_and_batch_statistics_stay(normalized_subject):
    before = {name: value.clone() for name, value in normalized_subject.network.state_dict().items()}
    result = linear.Config(**CROPS).build().evaluate(normalized_subject)
    assert result.scores["top1"].value > 0.6
    assert all(torch.equal(value, before[name]) for name, value in normalized_subject.network.state_dict().items())


def test_a_seeded_probe_of_crops_repeats_exactly_and_another_seed_sees_others(normalized_subject):
    first, again = (linear.Config(**CROPS, seed=3).build().evaluate(normalized_subject) for _ in range(2))
    assert (first.scores, first.details) == (again.scores, again.details)
    moments = np.zeros(24), np.ones(24)
    sample_id = normalized_subject.labels("train")[0]
    sides = [list(linear_sgd.new_crops(normalized_subject, sample_id, moments, 2, 16, seed, CPU)) for seed in (0, 0, 1)]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(sides[0], sides[1], strict=True))
    assert not torch.equal(sides[0][0][0], sides[2][0][0])


def test_crops_of_shuffled_labels_score_chance():
    top1 = linear.Config(**CROPS).build().evaluate(SmallSubject(180, 180, shuffled=True)).scores["top1"]
    assert top1.low - 0.03 < 1 / 3 < top1.high + 0.03


def test_crops_need_images():
    with pytest.raises(UsageError, match="needs the images and the encoder"):
        _evaluated(_data(60, 0), _data(30, 1), **CROPS)


def test_new_crops_need_more_than_features():
    part = LabeledFeatures(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]))
    with pytest.raises(UsageError, match="needs the images and the encoder"):
        _evaluated(part, part, solver="sgd", augment=True)
