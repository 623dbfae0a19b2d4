"""A connection to Ray: to a running cluster, or to one that is started for this command and stopped at its end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sassl.ending import held_back
from ray_sassl.orchestrate.runtime.private import starting
from ray_sassl.plugins import UsageError

log = logging.getLogger(__name__)

GROUP_LABEL = "ray-sassl/group"
"""The label of a node's group, which the definitions in `cluster/` set."""
_OWN_OBJECT_STORE_BYTES = 2 * 2**30
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_MOST_SOCKET_BYTES = 103
"""Of a socket's path: 107 on Linux, 103 on macOS."""
_SOCKET_IN_FOLDER = "/ray-sassl-12345678/session_2026-11-29_10-32-40_509000_1234567/sockets/plasma_store"
_TUNED = {
    # Ray Data's progress bars would interfere with ours.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Workers are checked every half second instead of every two, since every start and end of a group waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How often to check for a notice that a worker's machine will go away; clouds give notice 30 s to 2 minutes ahead.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray within the block; if Ray is already initialized, it is used and left running.

    A Ray of our own has ended when the block has, with all its processes and its temporary folder, which stays only for its logs where
    something of Ray has failed.

    Args:
        address: Address of a running cluster, as `ray start --head` prints it; by default RAY_ADDRESS, else a new Ray is started.
        num_cpus: CPUs of a new Ray; by default all.

    Raises:
        UsageError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _TUNED.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _connected(address) if address and address != "local" else _own_ray(num_cpus):
        yield


@contextmanager
def _connected(address: str) -> Iterator[None]:
    try:
        with held_back(), starting():
            ray.init(address=address, **_QUIET)  # pyright: ignore[reportArgumentType]
    except ConnectionError as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r} ({error}). Give --address as `ray start --head` prints it, or leave it out (and "
            "RAY_ADDRESS unset) to run on this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_ray(num_cpus: int | None) -> Iterator[None]:
    with _own_folder() as folder:
        try:
            with held_back(), starting():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    object_store_memory=_OWN_OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    **_QUIET,
                )  # pyright: ignore[reportArgumentType]
            yield
        finally:
            with held_back():
                ray.shutdown(wait_for_processes=True)


@contextmanager
def _own_folder() -> Iterator[str]:
    """A folder for the sockets, logs and spilled objects of a Ray of our own, which is removed after the block."""
    folder = tempfile.mkdtemp(prefix="ray-sassl-", dir=socket_folder())
    try:
        yield folder
    except Exception as error:
        if not isinstance(error, UsageError) or error.__cause__ is not None:
            log.warning("Ray's logs of this command stay in %s", folder)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
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


def pin_to_driver() -> NodeAffinitySchedulingStrategy:
    """The scheduling of an actor that must live as long as the run: it holds no resources, so an autoscaler would consider its node
    idle."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_group(group: str | None) -> dict[str, str] | None:
    """Ray's label selector for nodes of the group."""
    return None if group is None else {GROUP_LABEL: group}
