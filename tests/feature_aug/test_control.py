from __future__ import annotations

import pytest

from tests.methods.test_branches import METHODS, _assert_same_state, _build, _train


@pytest.mark.parametrize("name", METHODS)
def test_the_control_is_the_augmentation_at_strength_zero_to_the_bit(name):
    zero = {"augmentation": {"name": "mask", "mask_prob": 0.0}, "num_samples": 3, "reduction": "free"}
    methods = [_build(name, fa=fa) for fa in (zero, zero | {"augmentation": "control"})]
    for method in methods:
        _train(method, range(3))
    _assert_same_state(*methods)
    control = methods[1]
    assert control.branches.num_losses == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert control.predictor is not None
