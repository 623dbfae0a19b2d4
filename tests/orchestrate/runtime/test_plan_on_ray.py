"""What `cluster plan` predicts against the real stream on Ray, with stages that sleep and nodes that pretend to have GPUs."""

from __future__ import annotations

import pytest

from benchmarks.cluster import TRAINERS, planned_and_measured

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.parametrize("trainers", TRAINERS)
def test_a_plan_is_within_a_tenth_of_the_stream(trainers: int):
    found = planned_and_measured(trainers, seconds=20)
    assert abs(found["off"]) < 0.1, found
