"""How an elastic run's workers share the global batch."""

from __future__ import annotations

import pytest

from ray_sassl.config.schema import ScalingConfig
from ray_sassl.process.errors import UsageError
from ray_sassl.train.config import TrainConfig, check_shares, share_of_batch


@pytest.mark.parametrize(("global_batch", "workers", "share"), [(256, 4, (64, 1)), (256, 2, (64, 2)), (256, 1, (64, 4)), (240, 3, (40, 2))])
def test_fewer_workers_take_the_same_batch_in_more_parts_that_are_no_larger(global_batch: int, workers: int, share: tuple[int, int]):
    rows, parts = share_of_batch(TrainConfig(global_batch=global_batch), 4, workers)
    assert (rows, parts) == share
    assert rows * parts * workers == global_batch


def test_parts_that_are_asked_for_stay_with_all_workers():
    assert share_of_batch(TrainConfig(global_batch=256, accumulate=2), 4, 4) == (32, 2)


def test_a_batch_must_divide_by_every_number_of_workers_that_a_run_may_have():
    check_shares(TrainConfig(global_batch=240), range(1, 5))
    with pytest.raises(UsageError, match=r"from scaling\.min_workers=2 to scaling\.num_workers=4; the nearest that do: 252 or 264"):
        check_shares(TrainConfig(global_batch=256), range(2, 5))


def test_a_run_is_elastic_if_it_may_have_fewer_workers():
    assert not ScalingConfig(num_workers=4).is_elastic
    assert list(ScalingConfig(num_workers=4).worker_counts) == [4]
    assert list(ScalingConfig(num_workers=4, min_workers=2).worker_counts) == [2, 3, 4]
    with pytest.raises(ValueError, match=r"scaling\.min_workers=5 is more than scaling\.num_workers=4"):
        ScalingConfig(num_workers=4, min_workers=5)
