"""What is wrong with labels is said before anything is computed, and scores are counted right."""

import numpy as np
import pytest
import torch

from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.evaluation.scores import check_classes, classification_scores
from ray_sassl.process.errors import UsageError


def test_a_class_without_train_images_is_named():
    with pytest.raises(UsageError, match=r"class 2 \(truck\) has test images and no train images"):
        check_classes(np.array([0, 1]), np.array([0, 2]), ("car", "plane", "truck"))
    with pytest.raises(UsageError, match=r"class 5, 7 has test images"):
        check_classes(np.array([0, 1]), np.array([0, 5, 7]))


def test_a_class_without_test_images_is_fine():
    check_classes(np.array([0, 1, 2]), np.array([0, 2]))


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(UsageError, match=rf"the test set has the label {label}; labels count from 0, and there are 3 classes"):
        check_classes(np.array([0, 1, 2]), np.array([0, label]), ("a", "b", "c"))


def test_a_label_that_is_no_class_number_is_refused_before_it_fills_the_memory():
    with pytest.raises(UsageError, match=r"the train set has the label 3000000000; labels count from 0, and at most 131,072"):
        check_classes(np.array([0, 3_000_000_000]), np.array([0]))


def test_scores_count_hits_among_one_and_five_and_by_class():
    class_scores = torch.eye(8)[torch.tensor([0, 1, 1, 7])] + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) / 10
    test = LabeledFeatures(np.empty((4, 1)), np.array([0, 1, 0, 6]), np.array([4, 5, 6, 9]))
    scores, predictions = classification_scores(class_scores, test)
    assert scores["top1"].value == 0.5
    assert scores["top5"].value == 0.75  # 0 is last but one for the third image
    assert scores["mean_per_class"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert predictions.predicted.tolist() == [0, 1, 1, 7]
    assert predictions.sample_id.tolist() == [4, 5, 6, 9]


def test_equal_scores_go_to_the_lower_class():
    _, predictions = classification_scores(torch.zeros(3, 7), LabeledFeatures(np.empty((3, 1)), np.array([0, 1, 2])))
    assert predictions.predicted.tolist() == [0, 0, 0]
