"""A Ray of our own: started on this machine for one command, and ended with it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from ray_sassl.ending import held_back
from ray_sassl.orchestrate.runtime import private
from ray_sassl.plugins import UsageError

log = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""Arguments of `ray.init`: what workers print is in Ray's logs."""
_OBJECT_STORE_BYTES = 2 * 2**30
_MOST_SOCKET_BYTES = 103
"""Of a socket's path: 107 on Linux, 103 on macOS."""
_SOCKET_IN_FOLDER = "/ray-sassl-12345678/session_2026-11-29_10-32-40_509000_1234567/sockets/plasma_store"


@contextmanager
def own_ray(num_cpus: int | None) -> Iterator[None]:
    """A Ray within the block, of which nothing is left after it but its logs where something of Ray has failed.

    Args:
        num_cpus: The CPUs that it has to give; all where not given.
    """
    with _own_folder() as folder:
        try:
            with held_back(), starting():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    **QUIET,
                )  # pyright: ignore[reportArgumentType]
            yield
        finally:
            with held_back():
                ray.shutdown(wait_for_processes=True)


@contextmanager
def starting() -> Iterator[None]:
    """Within the block Ray may be started without a change to how this process handles signals.

    Ray replaces the command's handler of SIGTERM by one that ends the process where it stands. And its processes would belong to the
    command's process group: what is sent to the group (by a terminal, by `timeout`) would end them before the command has ended in order.
    """
    services: Any = private.services
    utils: Any = private.utils
    popen, set_handler = services.ConsolePopen, utils.set_sigterm_handler
    services.ConsolePopen = partial(popen, process_group=0)
    if callable(signal.getsignal(signal.SIGTERM)):
        utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = popen, set_handler


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
