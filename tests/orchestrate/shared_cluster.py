"""One Ray for all tests of a process that kill no part of it, and one server of forked workers for this and all other Rays."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import pytest
import ray

from ray_sassl.files.cache import cache_dir
from ray_sassl.orchestrate.runtime.session import ray_session
from tests.orchestrate.forked.workers import fork_server

_ray, _server = ExitStack(), ExitStack()
_environment: dict[str, str] = {}


def forking() -> dict[str, str]:
    """The environment of a process whose Ray shall fork its workers instead of starting them."""
    if not _environment:
        _, environment = _server.enter_context(fork_server())
        _environment.update(environment)
        _server.callback(_environment.clear)
    return dict(_environment)


def start() -> None:
    """See that the Ray is there: two CPUs, and workers that are forked."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in forking().items():
            patch.setenv(name, value)
        for is_last in (False, False, True):
            try:
                _ray.enter_context(ray_session("local", num_cpus=2))
                break
            except Exception as error:
                if is_last or "timed out during startup" not in str(error):  # Ray gives itself 30 s, too few on a machine that is busy
                    raise
                ray.shutdown()


def stop() -> None:
    """End the Ray, where there is one."""
    _ray.close()


def stop_all() -> None:
    """End the Ray and the server."""
    _ray.close()
    _server.close()


def forget_weights() -> None:
    """Remove the weights that the nodes were given; the cache is the tests' own."""
    shutil.rmtree(cache_dir() / "weights", ignore_errors=True)
