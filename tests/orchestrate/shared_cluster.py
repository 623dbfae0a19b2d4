"""One Ray for all tests of a process that kill no part of it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import pytest
import ray

from ray_sassl.files.cache import cache_dir
from ray_sassl.orchestrate.runtime.session import ray_session
from tests.orchestrate.forked.workers import fork_server

_running = ExitStack()


def start() -> None:
    """See that the Ray is there: two CPUs, and workers that are forked."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _running.enter_context(fork_server()).items():
            patch.setenv(name, value)
        for is_last in (False, False, True):
            try:
                _running.enter_context(ray_session("local", num_cpus=2))
                break
            except Exception as error:
                if is_last or "timed out during startup" not in str(error):  # Ray gives itself 30 s, too few on a machine that is busy
                    raise
                ray.shutdown()


def stop() -> None:
    """End the Ray, where there is one."""
    _running.close()


def forget_weights() -> None:
    """Remove the weights that the nodes were given; the cache is the tests' own."""
    shutil.rmtree(cache_dir() / "weights", ignore_errors=True)
