from __future__ import annotations

import numpy as np
import pytest

from ray_sassl.process.errors import UsageError
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.dose import STRENGTHS, change_of, interval_at, rising, strength_for

IMAGES = np.random.default_rng(0).integers(10, 246, (3, 16, 20, 3)).astype(np.uint8)


def test_a_change_is_counted_in_gray_levels_both_ways():
    assert change_of(IMAGES, IMAGES).pixels == 0
    assert change_of(IMAGES, IMAGES).ssim == pytest.approx(1)
    half = IMAGES.copy()
    half[:, :8] += 6
    half[:, 8:] -= 4
    change = change_of(IMAGES, half)
    assert change.pixels == pytest.approx(5)
    assert change.ssim is not None
    assert 0.5 < change.ssim < 1
    assert change_of(IMAGES[:, :8], half[:, :8]).ssim is None


def test_the_papers_strength_is_a_fifth_and_two_is_full():
    assert interval_at(0.2) == SasslConfig().alpha == SasslConfig().beta
    assert interval_at(0) == (0, 0)
    assert interval_at(1.5) == (0.75, 1)
    assert interval_at(STRENGTHS[-1]) == (1, 1)


def test_a_strength_is_read_backward_from_its_dose():
    curve = rising([strength**2 for strength in STRENGTHS])
    assert strength_for(curve, 0) == 0
    for strength in (0.1, 0.22, 0.9, 2.0):
        assert strength_for(curve, strength**2) == pytest.approx(strength, rel=0.02)
    with pytest.raises(UsageError, match="a dose of 5 gray levels is not possible here: full strength gives 4"):
        strength_for(curve, 5)


def test_a_curve_does_not_fall_where_it_is_noisy():
    doses = [float(number) for number in range(len(STRENGTHS))]
    doses[3] = 1.5
    curve = rising(doses)
    assert [dose for _, dose in curve][2:5] == [2, 2, 4]
    assert strength_for(curve, 2) == STRENGTHS[2]
