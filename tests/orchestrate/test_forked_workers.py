"""The forked workers that tests use are as different from one another as those that Ray starts."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import pytest
import ray

pytestmark = pytest.mark.ray


class Worker:
    def drawn(self) -> tuple[str, str]:
        """Ids that Ray draws: of a worker, and of an object that is put."""
        return ray.WorkerID.from_random().hex(), ray.put(1).hex()

    def process(self) -> tuple[int, int, bool, str | None]:
        """Its number, that of its group, whether torch is there, and a variable of its environment."""
        return os.getpid(), os.getpgid(0), "torch" in sys.modules, os.environ.get("OF_ONE")


def _workers(number: int, **options: Any) -> list[Any]:
    return [cast(Any, ray.remote)(num_cpus=0, **options)(Worker).remote() for _ in range(number)]


def test_no_two_workers_draw_the_same_ids(ray_cluster: None):
    drawn = ray.get([worker.drawn.remote() for worker in _workers(3)])
    assert len({one for ids in drawn for one in ids}) == 6


def test_a_worker_has_a_process_group_and_an_environment_of_its_own(ray_cluster: None):
    workers = _workers(1) + _workers(1, runtime_env={"env_vars": {"OF_ONE": "yes"}})
    (pid, group, has_torch, variable), (other_pid, other_group, _, other_variable) = ray.get([one.process.remote() for one in workers])
    assert has_torch
    assert (pid, other_pid) == (group, other_group)
    assert pid != other_pid
    assert (variable, other_variable) == (None, "yes")
