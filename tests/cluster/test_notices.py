"""What a pretended metadata service announces reaches Ray, and nothing else does."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.nodes import ROOT, running_nodes
from ray_sassl.cluster import notices
from ray_sassl.cluster.notices import Metadata, Notice, Raylet, aws_notices, gcp_notices, raylets, watch

ACTION, REBALANCE = "/latest/meta-data/spot/instance-action", "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


class Service:
    """Answers as the metadata services of both clouds do; `documents` is what it has."""

    def __init__(self) -> None:
        self.documents: dict[str, str] = {PREEMPTED: "FALSE"}
        self.asked: list[str] = []
        self.failures = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                wants = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(200 if wants else 400, "a-token")

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                service.asked.append(self.path)
                is_google = path.startswith("/computeMetadata")
                header, value = ("Metadata-Flavor", "Google") if is_google else ("X-aws-ec2-metadata-token", "a-token")
                if service.failures:
                    service.failures -= 1
                    self._answer(503, "")
                elif self.headers[header] != value:
                    self._answer(403 if is_google else 401, "")
                elif path not in service.documents:
                    self._answer(404, "")
                else:
                    until = time.monotonic() + 5
                    while "wait_for_change" in query and service.documents[path] == "FALSE" and time.monotonic() < until:
                        time.sleep(0.01)
                    self._answer(200, service.documents[path])

            def _answer(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("ETag", "e1")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def announce(self, seconds: float) -> None:
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        self.documents[ACTION] = json.dumps({"action": "terminate", "time": f"{moment:%Y-%m-%dT%H:%M:%SZ}"})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which nobody may ask for a machine's own data
    service = Service()
    yield service
    service.stop()


def process(folder: Path, *words: str) -> Path:
    """A process as it looks below `/proc`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cmdline").write_bytes("\0".join(words).encode())
    return folder


@pytest.fixture
def raylet(tmp_path: Path) -> Raylet:
    folder = process(tmp_path / "7", "/x/raylet", "--node_id=ab12", "--labels={}", "--gcs-address=10.0.0.1:6379")
    (found,) = raylets([folder, process(tmp_path / "8", "python", "raylet", "--node_id=cd"), tmp_path / "9"])
    return found


class Drained:
    """Stands for `ray drain-node`: keeps the notices, and refuses the first ones."""

    def __init__(self, refusals: int = 0, then: Callable[[], None] = lambda: None) -> None:
        self.notices: list[Notice] = []
        self._refusals, self._then = refusals, then

    def __call__(self, raylet: Raylet, notice: Notice) -> bool:
        assert (raylet.node_id, raylet.address) == ("ab12", "10.0.0.1:6379")
        self.notices.append(notice)
        self._refusals -= 1
        self._then()
        return self._refusals < 0


def test_nothing_is_announced_until_it_is(service: Service):
    looks = aws_notices(Metadata(service.url), every_s=0)
    assert [next(looks), next(looks)] == [None, None]
    service.announce(seconds=100)
    notice = next(looks)
    assert notice is not None
    assert notice.is_last
    assert notice.text == "AWS will terminate this machine"
    assert notice.seconds is not None
    assert 90 < notice.seconds <= 100


@pytest.mark.parametrize("document", ['{"action": "stop"}', '{"action": "stop", "time": "soon"}'])
def test_a_notice_of_aws_without_a_time_gives_two_minutes(service: Service, document: str):
    service.documents[ACTION] = document
    assert next(aws_notices(Metadata(service.url))) == Notice("AWS will stop this machine", 120.0, True)


def test_a_recommendation_is_told_once_and_the_final_notice_after_it(service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch):
    service.documents[REBALANCE] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    drained = Drained(then=lambda: service.announce(seconds=100))
    monkeypatch.setattr(notices, "drain", drained)
    watch("aws", raylet, url=service.url, every_s=0.01)
    assert [(notice.seconds is None, notice.is_last) for notice in drained.notices] == [(True, False), (False, True)]


def test_recommendations_may_be_ignored(service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch):
    service.documents[REBALANCE] = "{}"
    service.announce(seconds=100)
    drained = Drained()
    monkeypatch.setattr(notices, "drain", drained)
    watch("aws", raylet, url=service.url, rebalance=False)
    assert [notice.is_last for notice in drained.notices] == [True]


def test_google_is_asked_to_answer_when_it_changes(service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch):
    drained = Drained()
    monkeypatch.setattr(notices, "drain", drained)
    threading.Timer(0.2, lambda: service.documents.update({PREEMPTED: "TRUE"})).start()
    watch("gcp", raylet, url=service.url)
    assert [notice.seconds for notice in drained.notices] == [30.0]
    assert [path.partition("?")[2] for path in service.asked] == ["", "wait_for_change=true&timeout_sec=10&last_etag=e1"]


def test_a_machine_that_is_already_announced_is_seen_at_the_first_look(service: Service):
    service.documents[PREEMPTED] = "TRUE"
    notice = next(gcp_notices(Metadata(service.url)))
    assert notice is not None
    assert notice.is_last


def test_a_service_that_fails_and_a_ray_that_refuses_are_asked_again(
    service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    service.failures = 3
    service.announce(seconds=100)
    drained = Drained(refusals=2)
    monkeypatch.setattr(notices, "drain", drained)
    watch("aws", raylet, url=service.url, every_s=0.01)
    assert len(drained.notices) == 3
    left = [notice.seconds for notice in drained.notices]
    assert left == sorted(set(left), reverse=True), "a later request leaves less time"
    assert capsys.readouterr().out.count("does not answer") == 1


def test_an_answer_that_is_not_http_does_not_end_the_watch(service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch):
    answers, get, drained = [http.client.BadStatusLine("?")], Metadata.get, Drained()
    monkeypatch.setattr(Metadata, "get", lambda *words, **options: get(*words, **options) if not answers else _raise(answers.pop()))
    monkeypatch.setattr(notices, "drain", drained)
    service.announce(seconds=100)
    watch("aws", raylet, url=service.url, every_s=0.01)
    assert len(drained.notices) == 1


def _raise(error: Exception) -> None:
    raise error


def test_the_watch_ends_with_ray(service: Service, raylet: Raylet, tmp_path: Path):
    process(tmp_path / "7", "/x/raylet", "--node_id=another", "--gcs-address=10.0.0.1:6379")
    watch("aws", raylet, url=service.url)
    assert service.asked == []


def test_ray_is_told_the_node_the_reason_and_the_time(raylet: Raylet, monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []

    def run(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    assert notices.drain(raylet, Notice("AWS will stop this machine", 99.7, True))
    assert notices.drain(raylet, Notice("AWS recommends", None, False))
    told = ["-m", "ray.scripts.scripts", "drain-node", "--address=10.0.0.1:6379", "--node-id=ab12"]
    told += ["--reason=DRAIN_NODE_REASON_PREEMPTION"]
    assert commands[0] == [*told, "--reason-message=AWS will stop this machine", "--deadline-remaining-seconds=99"]
    assert commands[1] == [*told, "--reason-message=AWS recommends"]


def test_a_ray_that_does_not_answer_is_told_again(
    service: Service, raylet: Raylet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tries = tmp_path / "tries"
    hangs = tmp_path / "python"
    hangs.write_text(f"#!/bin/sh\necho >> {tries}\n[ $(wc -l < {tries}) -gt 1 ] || exec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(notices.sys, "executable", str(hangs))
    monkeypatch.setattr(notices, "_DRAIN_S", 1.0)
    service.announce(seconds=100)
    watch("aws", raylet, url=service.url, every_s=0.01)
    assert len(tries.read_text().splitlines()) == 2
    out = capsys.readouterr().out
    assert out.index("does not answer within 1 s") < out.index("Ray drains the node")


def test_while_it_waits_it_has_neither_ray_nor_torch_in_memory():
    code = "import sys; import ray_sassl.cluster.notices; print(sorted({'ray', 'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout == "[]\n"


_WAIT_UNTIL_GONE = """
import sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
until = time.monotonic() + 120
while time.monotonic() < until:
    nodes = {key.hex(): node for key, node in client.get_all_node_info().items()}
    if nodes.pop(sys.argv[2]).state != 0:
        print([node.state for node in nodes.values()])
        break
    time.sleep(0.2)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_whose_end_is_announced_leaves_ray_and_the_others_stay(service: Service):
    with running_nodes(2) as nodes:
        node = nodes.workers[0]
        command = [sys.executable, "-m", "ray_sassl.cluster.notices", "aws", f"--metadata={service.url}", f"--node-id={node.node_id}"]
        watcher = subprocess.Popen(command, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        try:
            assert watcher.stdout is not None
            assert f"watching for notices of aws on node {node.node_id}" in watcher.stdout.readline()
            service.announce(seconds=90)
            gone = [sys.executable, "-c", _WAIT_UNTIL_GONE, nodes.address, node.node_id]
            ended = subprocess.run(gone, env=nodes.environment, capture_output=True, text=True, timeout=180, check=True)
            assert ended.stdout == "[0, 0]\n", ended
            told, _ = watcher.communicate(timeout=60)
            assert "AWS will terminate this machine: Ray drains the node" in told
            assert watcher.returncode == 0
        finally:
            watcher.kill()
