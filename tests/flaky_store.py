"""An S3 store of the tests' own that misbehaves on demand: moto's server behind a small proxy that a test tells what to do."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pyarrow.fs as pafs

Fault = Literal["busy", "cut", "full", "slow"] | None
"""`busy`: the answer is 503. `cut`: the connection ends half-way through what is sent. `full`: 507. `slow`: an answer after a second."""

_ERRORS = {"busy": (503, "SlowDown"), "full": (507, "QuotaExceeded")}


class FlakyStore(ThreadingHTTPServer):
    """A proxy before an S3 server.

    Attributes:
        plan: Says what happens to a request, by its method and path.
        log: Method, path and fault of each request.
    """

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.target = target
        self.plan: Callable[[str, str], Fault] = lambda method, path: None
        self.log: list[tuple[str, str, Fault]] = []

    def options(self) -> str:
        """What a URI has behind its path."""
        return s3_options(("127.0.0.1", self.server_address[1]))

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that were cut are what is wanted here."""


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyStore

    def _serve(self) -> None:
        fault = self.server.plan(self.command, self.path)
        self.server.log.append((self.command, self.path, fault))
        if fault == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.connection.close()
            self.close_connection = True
            return
        body = self._body()
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            return
        if fault == "slow":
            time.sleep(1)
        upstream = http.client.HTTPConnection(*self.server.target, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "expect", "content-length")
        }
        upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = upstream.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        upstream.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("transfer-encoding", "content-length", "connection")}
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in (kept | {"Content-Length": length}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """The tests look at `FlakyStore.log`."""


_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of moto's S3 server with an empty bucket `bucket`; its credentials are in the environment meanwhile."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    before = {name: os.environ.get(name) for name in _CREDENTIALS}
    os.environ.update(_CREDENTIALS)
    _forget_earlier_servers(host, port)
    endpoint = f"{host}:{port}"
    pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True).create_dir("bucket")
    try:
        yield host, port
    finally:
        moto.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _forget_earlier_servers(host: str, port: int) -> None:
    """All of moto's servers in a process share what they hold, also with those that were stopped."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("POST", "/moto-api/reset")
    assert connection.getresponse().status == 200
    connection.close()


@contextmanager
def flaky_store() -> Iterator[FlakyStore]:
    """The store before a server of its own."""
    with s3_server() as target:
        store = FlakyStore(target)
        threading.Thread(target=store.serve_forever, daemon=True).start()
        try:
            yield store
        finally:
            store.shutdown()


def s3_options(address: tuple[str, int]) -> str:
    """What a URI of the server at the address has behind its path."""
    return f"?scheme=http&endpoint_override={address[0]}:{address[1]}&region=us-east-1"
