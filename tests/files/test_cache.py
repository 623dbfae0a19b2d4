from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ray_sassl.files.cache import DownloadError, cache_dir, download, locked

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A web server on this machine that can cut its answers; it remembers what it was asked for."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.cut_at: int | None = None
        self.takes_ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.ranges.append(wanted)
                if self.path != "/file":
                    self.send_error(404)
                    return
                first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.takes_ranges else 0
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(CONTENT) - first))
                self.end_headers()
                self.wfile.write(CONTENT[first : server.cut_at])

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def _download(server: Server, target: Path, path: str = "/file", sha256: str = SHA256, num_bytes: int = len(CONTENT), **kwargs) -> None:
    download([f"{server.address}{path}"], target, num_bytes, sha256, **kwargs)


def test_a_file_is_downloaded_and_its_progress_reported(server, tmp_path):
    told: list[int] = []
    _download(server, tmp_path / "file", advance=told.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)
    assert not (tmp_path / "file.part").exists()


def test_an_interrupted_download_is_continued(server, tmp_path):
    server.cut_at = 300_000
    with pytest.raises(DownloadError, match="300,000"):
        _download(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    server.cut_at = None
    _download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_a_server_that_cannot_send_parts_sends_the_whole(server, tmp_path):
    server.takes_ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    _download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_of_another_content_gets_no_name(server, tmp_path):
    with pytest.raises(DownloadError, match=f"sha256 is {SHA256} and should be 0000"):
        _download(server, tmp_path / "file", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_large_is_not_read_to_its_end(server, tmp_path):
    with pytest.raises(DownloadError, match="larger than the 1,000 bytes"):
        _download(server, tmp_path / "file", num_bytes=1000)


def test_the_next_address_is_tried(server, tmp_path):
    download([f"{server.address}/none", "http://127.0.0.1:9/file", f"{server.address}/file"], tmp_path / "file", len(CONTENT), SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_all_failures_are_named(server, tmp_path):
    with pytest.raises(DownloadError, match=r"(?s)/none: .*404.*:9/file"):
        download([f"{server.address}/none", "http://127.0.0.1:9/file"], tmp_path / "file", 1, SHA256)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("RAY_SASSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ray-sassl"


def _hold(path: str, log: str, hold_s: float) -> None:
    with locked(Path(path)):
        with open(log, "a") as file:
            file.write(f"in {os.getpid()}\n")
        time.sleep(hold_s)
        with open(log, "a") as file:
            file.write(f"out {os.getpid()}\n")


def test_a_second_process_waits_for_the_first(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_hold, args=(str(tmp_path / "file"), str(log), 0.2)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [what for what, _ in lines] == ["in", "out"] * 3
    assert all(lines[place][1] == lines[place + 1][1] for place in (0, 2, 4))


def test_a_proxy_that_is_not_an_address_is_one_reason_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("http_proxy", "http://user:hunter2@127.0.0.1:port")
    monkeypatch.setattr(urllib.request, "_opener", None)  # which was made with the proxies of before
    with pytest.raises(DownloadError, match="nonnumeric port") as raised:
        download(["http://example.org/file"], tmp_path / "file", 3, "")
    assert "hunter2" not in str(raised.value)
