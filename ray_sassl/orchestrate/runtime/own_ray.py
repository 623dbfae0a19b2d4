"""A Ray of our own: started on this machine for one command, and ended with it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ray_sassl.files import storage
from ray_sassl.orchestrate.runtime import private
from ray_sassl.orchestrate.runtime.forking import forked_workers
from ray_sassl.orchestrate.runtime.reasons import reason_of
from ray_sassl.process.ending import held_back
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""Arguments of `ray.init`: what workers print is in Ray's logs."""
_LOOPBACK = "127.0.0.1"
_PATIENCES_S = (0.0, 150.0)
"""At the first and at the second try, beyond what Ray waits by itself."""
_OBJECT_STORE_BYTES = 2 * 2**30
_MOST_SOCKET_BYTES = 103
"""Of a socket's path: 107 on Linux, 103 on macOS."""
_SOCKET_IN_FOLDER = "/ray-sassl-12345678/session_2026-11-29_10-32-40_509000_1234567/sockets/plasma_store"


@contextmanager
def own_ray(num_cpus: int | None) -> Iterator[None]:
    """A Ray within the block, of which nothing is left after it but its logs where something of Ray has failed.

    It listens on the loopback interface only.

    Args:
        num_cpus: The CPUs that it has to give; all where not given.

    Raises:
        UsageError: Ray does not start, at the second try either, or this user has no home folder.
    """
    storage.with_home("~/.ray")  # where Ray keeps its token
    with _own_folder() as folder, _on_loopback(), _without_idle_services(), forked_workers(folder):
        try:
            with held_back():
                _start(num_cpus, folder)
            yield
        finally:
            with held_back():
                ray.shutdown(wait_for_processes=True)


def _start(num_cpus: int | None, folder: str) -> None:
    """Start Ray; where that fails, as on a machine that is busy, once more with more time."""
    for patience_s in _PATIENCES_S:
        try:
            with starting(patience_s):
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    dashboard_host=_LOOPBACK,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=folder,
                    **QUIET,
                )  # pyright: ignore[reportArgumentType]
            return
        except Exception as error:
            ray.shutdown()
            if patience_s == _PATIENCES_S[-1]:
                raise UsageError(
                    f"Ray could not be started on this machine, tried twice: {reason_of(error)} The machine may be too busy, or short of "
                    f"memory or of space in {folder}. Try again, or with less at once (scaling.num_workers=0 trains without Ray)."
                ) from error
            log.warning("Ray did not start: %s Trying once more, with more time.", reason_of(error))


@contextmanager
def starting(patience_s: float = 0.0) -> Iterator[None]:
    """Within the block Ray may be started without a change to how this process handles signals; if that fails, what was started is ended.

    Ray replaces the command's handler of SIGTERM by one that ends the process where it stands. And its processes would belong to the
    command's process group: what is sent to the group (by a terminal, by `timeout`) would end them before the command has ended in order.

    Args:
        patience_s: How long a new node may take to be known, beyond the half minute that Ray gives it.
    """
    services: Any = private.services
    utils: Any = private.utils
    popen, get_node, set_handler = services.ConsolePopen, services.get_node, utils.set_sigterm_handler
    started: list[Any] = []

    def start(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, process_group=0, **options))
        return started[-1]

    def get_patiently(*args: Any, **options: Any) -> Any:
        until = time.monotonic() + patience_s
        while True:
            try:
                return get_node(*args, **options)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    services.ConsolePopen, services.get_node = start, get_patiently
    if callable(signal.getsignal(signal.SIGTERM)):
        utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    except BaseException:
        for process in started:
            process.kill()
            process.wait()
        raise
    finally:
        services.ConsolePopen, services.get_node, utils.set_sigterm_handler = popen, get_node, set_handler


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within the block a new Ray takes the loopback address for its own, as on macOS; on Linux it would look for another one and listen on
    all. So do its processes, and torch's in them."""
    names = {private.ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if sys.platform == "linux":
        names |= {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    before = {name: os.environ.get(name) for name in names}
    constants: Any = private.ray_constants
    was_enabled, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(names)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = was_enabled
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _without_idle_services() -> Iterator[None]:
    """Within the block a new Ray has no processes that have nothing to do in it: the autoscaler's monitor on a machine that stays alone,
    and that which sends logs to the command. The dashboard's stays: Ray Train looks for its address at a run's end, or waits for it."""
    node: Any = private.Node
    before = {name: getattr(node, name) for name in ("start_monitor", "start_log_monitor")}
    node.start_monitor = node.start_log_monitor = lambda self: None
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


@contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for the sockets, logs and spilled objects of a Ray of our own, which is removed after the block."""
    folder = tempfile.mkdtemp(prefix="ray-sassl-", dir=socket_folder())
    has_failed = False
    try:
        yield folder
    except Exception as error:
        has_failed = not isinstance(error, UsageError) or error.__cause__ is not None
        raise
    finally:
        if has_failed:
            log.warning("Ray's logs of this command stay in %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def socket_folder() -> str:
    """The temporary folder, or another one where its path is too long for sockets in it.

    Raises:
        UsageError: there is none that is short enough and can be written to.
    """
    most = _MOST_SOCKET_BYTES - len(_SOCKET_IN_FOLDER)
    tried = [*dict.fromkeys(filter(None, [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]))]
    for folder in tried:
        if len(os.fsencode(folder)) <= most and os.access(folder, os.W_OK | os.X_OK):
            if folder != tried[0]:
                log.warning("Ray's sockets are in %s: %s has more than %d bytes, or cannot be written", folder, tried[0], most)
            return folder
    raise UsageError(
        f"Ray needs a folder for its sockets whose path has at most {most} bytes and that can be written, and none of these is one: "
        f"{', '.join(tried)}. Set RAY_TMPDIR to one."
    )
