"""What a stranger's server, or a cluster whose records others have written, answers to `ray-sassl job`."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_sassl.orchestrate.jobs import submission
from tests.cli.in_process import call_main

_VERSION = b'{"ray_version": "2.60.0"}'
_JOB = {
    "type": "SUBMISSION",
    "submission_id": "first",
    "entrypoint": "x",
    "status": "FAILED",
    "start_time": 1000,
    "end_time": 2000,
    "metadata": {"ray_sassl": "1", "name": "first", "command": "pretrain", "target": "/a"},
}
_NOT_AN_API = {
    "a page": b"<html>[/x]\x1b]0;owned\x07</html>",
    "a number": b"3",
    "a list of texts": b'["a"]',
    "nothing": b"null",
    "depth": b"[" * 100_000,
    "digits": b"[" + b"9" * 6000 + b"]",
    "bytes": b"\xff\xfe",
    "logs of another shape": b'{"logs": 3}',
}


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with what the server was given for it; None is silence."""

    def do_GET(self) -> None:
        kind = "version" if self.path == "/api/version" else "logs" if self.path.endswith("/logs") else "jobs"
        content = self.server.answers[kind]  # pyright: ignore[reportAttributeAccessIssue]
        if content is None:
            self.server.ended.wait(60)  # pyright: ignore[reportAttributeAccessIssue]
            return
        if kind == "jobs" and self.path != "/api/jobs/":
            content = json.dumps(json.loads(content)[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    servers = []

    def start(version: bytes | None = _VERSION, jobs: bytes | None = b"[]", logs: bytes = b'{"logs": ""}') -> str:
        server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
        server.daemon_threads = True
        server.answers, server.ended = {"version": version, "jobs": jobs, "logs": logs}, threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.ended.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[object, str]]:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *words: call_main(["job", *words], monkeypatch)


def _record(**changes: Any) -> bytes:
    return json.dumps([_JOB | changes]).encode()


@pytest.mark.parametrize("kind", _NOT_AN_API)
def test_what_is_not_the_job_api_is_a_sentence(kind: str, serve: Callable[..., str], job: Callable[..., tuple[object, str]]):
    content = _NOT_AN_API[kind]
    for address in (serve(version=content), serve(jobs=content), serve(jobs=_record(), logs=content)):
        code, output = job("logs", "first", "--address", address)
        assert code == 2, output
        assert f"what answers at {address} is not Ray's job API" in output
        assert "\x1b" not in output
    code, output = job("logs", "first", "--follow", "--address", serve(jobs=_record()))
    assert code == 2, output
    assert "is not Ray's job API" in output


def test_only_the_newest_of_very_many_jobs_are_listed(serve: Callable[..., str], job: Callable[..., tuple[object, str]]):
    jobs = [_JOB | {"submission_id": f"job-{number}-", "start_time": number + 1, "metadata": None} for number in range(620)]
    code, output = job("list", "--address", serve(jobs=json.dumps(jobs).encode()))
    assert code == 0
    assert "job-619-" in output
    assert "job-119-" not in output
    assert "and 120 older ones" in output


def test_an_answer_that_does_not_come_is_waited_for_for_a_while(
    serve: Callable[..., str], job: Callable[..., tuple[object, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submission, "_PATIENCE_S", (1, 0.2))
    for address in (serve(version=None), serve(jobs=None)):
        code, output = job("list", "--address", address)
        assert code == 2
        assert f"no job API answers at {address} (" in output
        assert "timed out" in output


@pytest.mark.parametrize("changes", [{"status": "ODD"}, {"submission_id": 3}, {"start_time": "soon"}, {"metadata": {"name": ["a"]}}])
def test_a_record_of_another_shape_is_a_sentence(
    changes: dict[str, Any], serve: Callable[..., str], job: Callable[..., tuple[object, str]]
):
    address = serve(jobs=_record(**changes))
    for words in (["list"], ["wait", "first"]):
        code, output = job(*words, "--address", address)
        assert code == 2, output
        assert "is not Ray's job API, or another version's" in output


@pytest.mark.parametrize("time_ms", [10**18, -(10**18), 10**30])
def test_a_time_that_no_clock_shows_is_none(time_ms: int, serve: Callable[..., str], job: Callable[..., tuple[object, str]]):
    code, output = job("status", "first", "--address", serve(jobs=_record(start_time=time_ms, end_time=time_ms)))
    assert code == 0, output
    assert "not yet" in output


@pytest.mark.parametrize(("given", "code"), [(2, 2), (-9, 137), (-15, 143), (256, 1), (10**30, 1), (-(10**30), 1), (None, 1), (0, 1)])
def test_a_failed_job_never_counts_as_finished(
    given: int | None, code: int, serve: Callable[..., str], job: Callable[..., tuple[object, str]]
):
    assert job("wait", "first", "--address", serve(jobs=_record(driver_exit_code=given)))[0] == code


def test_hostile_texts_of_records_and_logs_are_shown_and_not_obeyed(serve: Callable[..., str], job: Callable[..., tuple[object, str]]):
    word = "[/x] \x1b]0;owned\x07 \u202e s3://KEY:hunter2@bucket"
    metadata = {"ray_sassl": "1", "name": "first", "command": word, "target": word}
    jobs = _record(message=word, entrypoint=word, metadata=metadata)
    address = serve(jobs=jobs, logs=json.dumps({"logs": word}).encode())
    for words in (["list"], ["status", "first"], ["logs", "first"]):
        code, output = job(*words, "--address", address)
        assert code == 0, output
        assert "[/x] \\x1b]0;owned\\x07 \\u202e s3://***@bucket" in output


@pytest.mark.parametrize("kind", ["two lines", "bytes", "large"])
def test_a_file_that_is_not_a_token_is_a_sentence(
    kind: str, serve: Callable[..., str], job: Callable[..., tuple[object, str]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "token"
    path.write_bytes({"two lines": b"a\nb", "bytes": b"\xff\xfe", "large": b""}[kind])
    if kind == "large":
        os.truncate(path, 3 << 30)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    code, output = job("list", "--address", serve())
    assert code == 2, output
    assert f"Error: {path}" in output


@pytest.mark.parametrize("address", ["http://user:hunter2@127.0.0.1:1", "user:hunter2@127.0.0.1", "user:hunter2@127.0.0.1:1"])
def test_the_password_in_an_address_is_not_shown(address: str, job: Callable[..., tuple[object, str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    code, output = job("list")
    assert code == 2, output
    assert "hunter2" not in output
    assert "http://***@127.0.0.1" in output
