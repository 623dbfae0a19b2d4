"""How many trials fit, and searches that would wait forever."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.pretraining import preflight
from ray_sassl.orchestrate.runtime.capacity import ResourcesError
from ray_sassl.orchestrate.tune import resources as search_resources
from ray_sassl.orchestrate.tune.resources import actor_resources, num_concurrent
from ray_sassl.study.record import StudyConfig
from tests.orchestrate.simulated import simulated_study


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Sets what the cluster offers."""

    def offer(*, grows: bool = False, **resources: float) -> None:
        for module in (preflight, search_resources):
            monkeypatch.setattr(module, "offered", lambda name: math.inf if grows else resources.get(name, 0.0))
        monkeypatch.setattr(search_resources, "present", lambda name: resources.get(name, 0.0))

    return offer


def _study(*overrides: str, **changes: Any) -> StudyConfig:
    study = simulated_study(num_trials=20, **changes)
    return study.model_copy(update={"base": apply_overrides(study.base, overrides)})


def test_trials_with_workers_take_a_trainer_and_a_task_of_the_stream(cluster):
    cluster(CPU=16)
    assert num_concurrent(_study("scaling.num_workers=1")) == 8
    assert num_concurrent(_study("scaling.num_workers=3")) == 4
    assert num_concurrent(_study("scaling.num_workers=1", max_concurrent=3)) == 3


def test_trials_in_one_process_take_its_cpus_and_a_gpu_where_there_are_some(cluster):
    cluster(CPU=2)
    assert num_concurrent(_study("scaling.num_workers=0")) == 2
    assert actor_resources(_study("scaling.num_workers=0").base) == {"CPU": 1.0}
    cluster(CPU=16, GPU=3)
    assert num_concurrent(_study("scaling.num_workers=0")) == 3
    assert actor_resources(_study("scaling.num_workers=0").base) == {"CPU": 1.0, "GPU": 1.0}


def test_stylizers_count_with_all_that_a_pool_may_grow_to_unless_the_trial_is_alone(cluster):
    pool = ("scaling.num_workers=1", "stream.layout=pool", "stream.pool={min: 1, max: 4}")
    cluster(CPU=12)
    assert num_concurrent(_study(*pool)) == 2  # 1 trainer, 1 task, 4 stylizers each
    cluster(CPU=3)
    assert num_concurrent(_study(*pool)) == 1


def test_one_trial_at_a_time_works_on_two_cores(cluster):
    cluster(CPU=2)
    assert num_concurrent(_study("scaling.num_workers=1")) == 1


def test_a_search_that_would_wait_for_ever_is_refused_with_the_sum(cluster):
    cluster(CPU=2)
    with pytest.raises(ResourcesError, match=r"1 x 5 = 5 CPUs of 2:\n    4 for 4 training workers"):
        num_concurrent(_study("scaling.num_workers=4"))
    with pytest.raises(ResourcesError, match=r"3 x 2 = 6 CPUs of 2"):
        num_concurrent(_study("scaling.num_workers=1", max_concurrent=3))
    with pytest.raises(ResourcesError, match=r"runs all 20 trials at once[\s\S]*Lower --trials"):
        num_concurrent(_study("scaling.num_workers=1", scheduler="pbt"))


def test_on_a_cluster_that_grows_trials_begin_where_there_is_room_and_one_begins_from_zero(cluster):
    cluster(grows=True)
    assert num_concurrent(_study("scaling.num_workers=1", "scaling.use_gpu=false")) == 1
    cluster(grows=True, CPU=6)
    assert num_concurrent(_study("scaling.num_workers=1", "scaling.use_gpu=false")) == 3
    assert num_concurrent(_study("scaling.num_workers=1", "scaling.use_gpu=false", max_concurrent=7)) == 7
    assert num_concurrent(_study("scaling.num_workers=1", "scaling.use_gpu=false", scheduler="pbt")) == 20
