"""A connection to Ray: to a running cluster, or to one that is started for this command and stopped at its end."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sassl.orchestrate.runtime.own_ray import QUIET, own_ray, starting
from ray_sassl.process.ending import held_back
from ray_sassl.process.errors import UsageError

GROUP_LABEL = "ray-sassl/group"
"""The label of a node's group, which the definitions in `cluster/` set."""
_TUNED = {
    # Ray Data's progress bars would interfere with ours.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Workers are checked every half second instead of every two, since every start and end of a group waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # How often to check for a notice that a worker's machine will go away; clouds give notice 30 s to 2 minutes ahead.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


_ANSWER_S = 8.0
_HTTP2_SETTINGS = 4


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray within the block; if Ray is already initialized, it is used and left running.

    A new Ray ends with the block, with all its processes and its temporary folder, which stays for its logs if something of Ray has failed.

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
    with _connected(address) if address and address != "local" else own_ray(num_cpus):
        yield


@contextmanager
def _connected(address: str) -> Iterator[None]:
    check_address(address)
    try:
        with held_back(), starting():
            ray.init(address=address, **QUIET)  # pyright: ignore[reportArgumentType]
    except ConnectionError as error:
        if address == "auto":
            raise _no_cluster(address, error) from error
        raise UsageError(
            f"a server answers at {address!r}, but Ray cannot join its cluster ({error}). If the cluster has a token, put it into "
            f"~/.ray/auth_token, or its path into RAY_AUTH_TOKEN_PATH; the cluster's Ray must be {ray.__version__} too."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """See that a cluster answers at the address, within seconds; Ray itself would wait for a quarter of an hour.

    Raises:
        UsageError: it is the address of something else, or nobody answers.
    """
    if address == "auto":
        return
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rstrip("/").rpartition(":")
    if scheme in ("http", "https"):
        raise UsageError(
            f"{address} is the address of a dashboard. Give that of the cluster itself, HOST:PORT as `ray start --head` prints it, such as "
            f"{host or rest}:6379; commands are sent to a dashboard by `ray-sassl job submit --address {address}`"
        )
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"{address!r} is not the address of a Ray cluster. Give HOST:PORT as `ray start --head` prints it, such as 10.0.0.5:6379"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as connection:
            if not _speaks_grpc(connection):
                raise ConnectionError("something else than a Ray cluster answers, or nothing does")
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: OSError) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at {address!r} ({error}). Give --address as `ray start --head` prints it, or leave it out (and "
        "RAY_ADDRESS unset) to run on this machine."
    )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other end answers the opening of HTTP/2 as a server of gRPC does. Behind TLS that is not seen."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True
    connection.settimeout(_ANSWER_S)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _HTTP2_SETTINGS, 0, 0, 0, 0, 0]))
    header = connection.recv(9)
    return len(header) > 3 and header[3] == _HTTP2_SETTINGS


def pin_to_driver() -> NodeAffinitySchedulingStrategy:
    """The scheduling of an actor that must live as long as the run: it holds no resources, so an autoscaler would consider its node
    idle."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_group(group: str | None) -> dict[str, str] | None:
    """Ray's label selector for nodes of the group."""
    return None if group is None else {GROUP_LABEL: group}
