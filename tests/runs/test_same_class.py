import numpy as np
import pytest

from ray_sassl.runs.same_class import same_class_pairs

LABELS = np.array([0, 0, 0, 1, 1, 2, -1])


def _slow(some: list[int], others: list[int]) -> float:
    pairs = [(a, b) for a in some for b in others if a != b and min(a, b) >= 0 and min(LABELS[a], LABELS[b]) >= 0]
    return sum(LABELS[a] == LABELS[b] for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("some", "others"), [([0, 1, 3, 4, 5], [0, 1, 3, 4, 5]), ([0, 3], [1, 2, 3, 5, -1, 6]), ([0, 6, 5], [0, 0, 4, 4, 5, -1])]
)
def test_the_rate_is_that_of_all_pairs_of_different_labeled_images(some, others):
    assert same_class_pairs(LABELS, np.array(some), np.array(others)) == pytest.approx(_slow(some, others))


def test_batches_of_one_class_and_of_different_classes_are_told_apart():
    assert same_class_pairs(LABELS, np.array([0, 1, 2]), np.array([0, 1, 2])) == 1
    assert same_class_pairs(LABELS, np.array([0, 3, 5]), np.array([0, 3, 5])) == 0


def test_there_is_no_rate_without_pairs():
    assert same_class_pairs(LABELS, np.array([6]), np.array([0, 1])) is None
    assert same_class_pairs(LABELS, np.array([5]), np.array([5])) is None
    assert same_class_pairs(LABELS, np.array([0, 1]), np.array([-1, -1])) is None
