"""Parts of a train set by class."""

import numpy as np
import pytest

from ray_sassl.evaluation.splits import held_out, n_of_each, stratified
from ray_sassl.process.errors import UsageError

LABELS = np.array([0] * 100 + [1] * 50 + [2])


def test_every_class_gives_its_share_and_at_least_one():
    assert np.bincount(LABELS[stratified(LABELS, 0.1, 0)]).tolist() == [10, 5, 1]
    assert np.bincount(LABELS[stratified(LABELS, 0.001, 0)]).tolist() == [1, 1, 1]
    assert stratified(LABELS, 1.0, 0).all()


def test_the_only_image_of_a_class_is_not_held_out():
    assert np.bincount(LABELS[held_out(LABELS, 0.2, 0)], minlength=3).tolist() == [20, 10, 0]
    with pytest.raises(UsageError, match="no class has two train images"):
        held_out(np.arange(5), 0.2, 0)


def test_the_seed_decides():
    assert np.array_equal(stratified(LABELS, 0.1, 0), stratified(LABELS, 0.1, 0))
    assert not np.array_equal(stratified(LABELS, 0.1, 0), stratified(LABELS, 0.1, 1))


def test_draws_hold_each_class_as_often_and_no_image_twice():
    labels = LABELS[:150]
    rows = n_of_each(labels, 7, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [7, 7]
    assert len(set(rows.tolist())) == 14
