import numpy as np
import pytest
import torch
from torch import nn

from ray_sassl.evaluation import Evaluation
from ray_sassl.evaluation.protocols import finetune
from ray_sassl.evaluation.training import Classifier, train_classifier
from ray_sassl.process.errors import UsageError
from ray_sassl.train.divergence import DivergedError
from tests.evaluation.conftest import Normalized, SmallSubject

QUICK = {"epochs": 4, "batch_size": 16, "learning_rate": 0.5}


def _evaluated(subject: SmallSubject, **options) -> Evaluation:
    return finetune.Config(**(QUICK | options)).build().evaluate(subject)


def _trained(subject: SmallSubject, **options) -> Classifier:
    config = finetune.Config(**(QUICK | options))
    assert isinstance(config.learning_rate, float)
    return train_classifier(subject, subject.labels("train")[0], 3, config.epochs, config.learning_rate, config)[0]


def test_the_whole_network_learns_the_classes(normalized_subject):
    result = _evaluated(normalized_subject, epochs=8)
    assert result.scores["top1"].value > 0.9
    assert result.scores["top1"].low <= result.scores["top1"].value <= result.scores["top1"].high
    assert result.predictions is not None
    assert result.predictions.sample_id.tolist() == normalized_subject.labels("test")[0].tolist()
    assert result.details["num_train"] == 90
    assert len(result.details["loss_by_epoch"]) == 8
    assert result.details["loss_by_epoch"][-1] < result.details["loss_by_epoch"][0] / 2
    assert result.figures["loss"].startswith(b"\x89PNG")


def test_the_encoder_that_was_handed_in_stays_as_it_was(normalized_subject):
    before = {name: value.clone() for name, value in normalized_subject.network.state_dict().items()}
    modes = [module.training for module in normalized_subject.network.modules()]
    network = _trained(normalized_subject)
    assert all(torch.equal(value, before[name]) for name, value in normalized_subject.network.state_dict().items())
    assert [module.training for module in normalized_subject.network.modules()] == modes
    changed = {name for name, value in network.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(before)


def test_fixed_batch_normalization_keeps_the_statistics_of_pretraining_and_trains_the_rest(normalized_subject):
    normalized_subject.network.norm.running_mean.fill_(0.3)
    before = {name: value.clone() for name, value in normalized_subject.network.state_dict().items()}
    after = _trained(normalized_subject, batch_norm="fixed").encoder.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_seeded_run_is_repeatable_and_does_not_use_the_global_generator(normalized_subject):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = _trained(normalized_subject)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    again, other = _trained(normalized_subject), _trained(normalized_subject, seed=1)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_shuffled_labels_score_chance():
    top1 = _evaluated(SmallSubject(180, 180, shuffled=True, network=Normalized())).scores["top1"]
    assert top1.low - 0.03 < 1 / 3 < top1.high + 0.03


def test_the_learning_rate_is_chosen_on_held_out_train_images_and_never_by_test_images(normalized_subject):
    details = _evaluated(normalized_subject, learning_rate=[0.5, 1e-46]).details
    assert details["learning_rates"] == [1e-46, 0.5]
    assert details["learning_rate"] == 0.5
    assert details["num_held_out"] == 18
    assert details["validation_top1"][1] > details["validation_top1"][0]
    assert details["num_train"] == 90
    images, labels = normalized_subject.data["test"]
    normalized_subject.data["test"] = images[::-1], labels
    again = _evaluated(normalized_subject, learning_rate=[0.5, 1e-46]).details
    assert again == details


def test_the_classifier_learns_at_a_rate_of_its_own(normalized_subject):
    still = _trained(normalized_subject, learning_rate=1e-9, head_factor=1e8)
    assert still.head.weight.abs().max() > 0.01
    for name, value in normalized_subject.network.named_parameters():
        torch.testing.assert_close(dict(still.encoder.named_parameters())[name], value, atol=1e-6, rtol=0)


def test_the_rate_scales_with_the_batch_as_a_first_step_shows():
    subject = SmallSubject(16)
    sides = [_trained(subject, epochs=1, batch_size=16, learning_rate=rate).head.bias for rate in (0.1, 0.2)]
    torch.testing.assert_close(2 * sides[0], sides[1])
    x = torch.from_numpy(subject.features("train").features)
    labels = torch.from_numpy(subject.labels("train")[1])
    gradient = (torch.full((16, 3), 1 / 3) - nn.functional.one_hot(labels, 3)).mean(0)
    # Nesterov's first step is 1 + momentum gradients long; the rate is 0.1 * 16 / 256.
    torch.testing.assert_close(sides[0], -0.1 * 16 / 256 * 1.9 * gradient, atol=1e-7, rtol=1e-4)
    assert x.shape == (16, 24)


def test_a_too_large_rate_is_reported_and_loses_against_others():
    subject = SmallSubject(shuffled=True, network=Normalized())
    with pytest.raises(DivergedError, match="no longer finite at a learning rate of 1e\\+30; give a smaller one"):
        _trained(subject, learning_rate=1e30)
    assert _evaluated(subject, learning_rate=[0.5, 1e30]).details["validation_top1"][1] == 0.0


def test_a_class_with_test_images_only_and_a_single_class_are_refused(normalized_subject):
    images, labels = normalized_subject.data["train"]
    normalized_subject.data["train"] = images, np.minimum(labels, 1)
    with pytest.raises(UsageError, match=r"class 2 \(blue\) has test images and no train images"):
        _evaluated(normalized_subject)
    for split in ("train", "test"):
        normalized_subject.data[split] = normalized_subject.data[split][0], 0 * normalized_subject.data[split][1]
    with pytest.raises(UsageError, match="at least two classes"):
        _evaluated(normalized_subject)


def test_running_statistics_move_slowly_in_a_long_epoch():
    network = Classifier(Normalized(), 24, 3)
    from ray_sassl.evaluation.training import _set_modes

    for steps, momentum in ((5, 0.1), (1000, 0.01)):
        _set_modes(network, "train", steps)
        assert network.encoder.norm.momentum == momentum
        assert network.training
        assert network.encoder.norm.training


def test_raw_pixels_are_a_baseline_that_has_nothing_to_train_but_the_classifier():
    from ray_sassl.evaluation.subject import RawPixels

    subject = SmallSubject(network=RawPixels())
    subject.encoder = lambda: (RawPixels(), 3 * 32 * 32)  # pyright: ignore[reportAttributeAccessIssue]
    assert _evaluated(subject, learning_rate=0.01).scores["top1"].value > 0.6
