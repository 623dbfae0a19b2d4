import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest

from ray_sassl.train.schedule import Counting, scaled_lr, share_done, warmup_cosine


def _rates(total_steps: int, warmup_steps: int, **kwargs: Any) -> list[float]:
    return [warmup_cosine(step, total_steps=total_steps, warmup_steps=warmup_steps, peak=2.0, **kwargs) for step in range(total_steps)]


def test_without_warmup_the_rate_is_the_half_cosine_of_the_paper():
    expected = [0.1 + 0.5 * (2.0 - 0.1) * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert _rates(10, 0, final=0.1) == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_by_equal_steps_to_the_peak():
    rates = _rates(20, 4)
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0], rel=1e-12)
    assert max(rates) == rates[4]


def test_after_warmup_the_cosine_spans_the_steps_that_are_left():
    assert _rates(20, 4)[12] == pytest.approx(1.0, rel=1e-12)  # half of the 16 steps


def test_the_rate_falls_toward_its_end_and_stays_there():
    rates = _rates(1000, 10, final=0.5)
    assert rates[-1] == pytest.approx(0.5, abs=1e-4)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert warmup_cosine(5000, total_steps=1000, warmup_steps=10, peak=2.0, final=0.5) == 0.5


def test_a_run_that_is_all_warmup_has_a_rate():
    assert 0 < warmup_cosine(3, total_steps=4, warmup_steps=10, peak=1.0) < 1
    assert warmup_cosine(4, total_steps=4, warmup_steps=4, peak=1.0) == 1.0


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.3 * 1024 / 256), ("sqrt", 0.3 * 32), ("none", 0.3)])
def test_the_peak_follows_the_global_batch(scaling, expected):
    assert scaled_lr(0.3, 1024, scaling) == pytest.approx(expected, rel=1e-12)


def test_the_ramps_are_those_of_the_official_codes():
    assert _rates(20, 4, ramp="s/n")[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert _rates(20, 4, ramp="s/(n-1)", start=0.2)[:5] == pytest.approx([*np.linspace(0.2, 2.0, 4), 2.0])


def test_the_share_of_a_run_is_counted_in_three_ways():
    counted = {counting: [share_done(step, 4, counting) for step in range(4)] for counting in get_args(Counting)}
    assert counted["(s+1)/n"] == [0.25, 0.5, 0.75, 1.0]
    assert counted["s/n"] == [0.0, 0.25, 0.5, 0.75]
    assert counted["s/(n-1)"] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
