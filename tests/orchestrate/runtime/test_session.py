"""Addresses of clusters that are none, or where nobody answers, are refused within seconds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ray_sassl.orchestrate.runtime import session
from ray_sassl.orchestrate.runtime.session import check_address, ray_session
from ray_sassl.process.errors import UsageError


@contextmanager
def _server(answer: bytes | None) -> Iterator[str]:
    """One that says this to whoever has written to it; None: it never answers."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                if answer is not None:
                    connection.sendall(answer)
                done.wait(60)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        done.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dashboard_is_answered_with_the_right_form(scheme: str, monkeypatch: pytest.MonkeyPatch):
    address = f"{scheme}://10.0.0.5:8265"
    with pytest.raises(UsageError, match=r"address of a dashboard.*10\.0\.0\.5:6379.*job submit --address"):
        check_address(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match="address of a dashboard"), ray_session():
        pass


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port", "host:99999"])
def test_what_is_no_address_is_answered_with_its_form(address: str):
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_address(address)


def test_a_port_where_nobody_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UsageError, match="no Ray cluster answers at"), ray_session(f"127.0.0.1:{port}"):
        pass


def test_a_server_of_another_kind_is_refused():
    with _server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, pytest.raises(UsageError, match="something else than a Ray cluster"):
        check_address(address)


def test_a_server_that_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_ANSWER_S", 0.2)
    with _server(None) as address, pytest.raises(UsageError, match="no Ray cluster answers at"):
        check_address(address)


def test_a_server_of_grpc_is_not_refused():
    with _server(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0])) as address:
        check_address(address)


def test_a_cluster_that_lets_nobody_in_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch):
    def refuse(**options: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")  # as with a wrong token

    monkeypatch.setattr(session, "check_address", lambda address: None)
    monkeypatch.setattr(session.ray, "init", refuse)
    with pytest.raises(UsageError, match=r"cannot join its cluster .*auth_token"), ray_session("10.0.0.5:6379"):
        pass
    with pytest.raises(UsageError, match="no Ray cluster answers at 'auto'"), ray_session("auto"):
        pass
