"""A Ray head of the tests' own, with dashboard and job API behind a token, and nothing of it left afterward."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray._private.services

from benchmarks.nodes import ROOT, free_ports
from ray_sassl.cli import main
from ray_sassl.orchestrate.jobs.submission import Jobs
from tests.orchestrate.forked.workers import fork_server

TOKEN = "a-token-of-the-tests"


def environment(token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process that knows the token, or none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token"} | ({"RAY_AUTH_TOKEN": token} if token else {})


class JobCluster:
    """A head node; `address` is that of its job API, and Ray's files are in `folder`."""

    def __init__(self, folder: Path, forking: dict[str, str], num_cpus: float = 2, labels: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        gcs, dashboard, agent, agent_grpc, metrics, env_agent, client = free_ports(7)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.gcs_address = f"{ray._private.services.get_node_ip_address()}:{gcs}"
        self.metrics_port = metrics
        self.folder = folder
        self._log = (folder / "head.log").open("w")
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={gcs}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={env_agent}",
            f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={num_cpus:g}",
            f"--temp-dir={folder}", "--object-store-memory=200000000", "--disable-usage-stats",
            f"--labels={','.join(f'{name}={value}' for name, value in (labels or {}).items())}",
        ]  # fmt: skip
        settings = {
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_worker_niceness": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
            "RAY_metrics_report_interval_ms": "2000",
        }
        self._head = subprocess.Popen(
            command,
            env=environment() | forking | settings | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )

    def wait_until_up(self, timeout_s: float = 120) -> None:
        """Until the job API answers whoever holds the token, and the node has registered."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._head.poll() is not None:
                break
            if self.status("/api/jobs/", TOKEN) == 200 and self._has_a_node():
                return
            time.sleep(0.2)
        raise RuntimeError(f"the cluster did not come up: {(self.folder / 'head.log').read_text()[-2000:]}")

    def status(self, path: str, token: str | None) -> int:
        """What the dashboard answers; 0 for nothing."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def _has_a_node(self) -> bool:
        """Whether a submit would find the cluster's CPUs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_TOKEN", TOKEN)
            return Jobs(self.address).resources().get("CPU", 0) > 0

    def metrics(self) -> str:
        """What the node shows to Prometheus."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def stop(self) -> None:
        """End the head and all that came from it."""
        kill_tree(self._head, self.folder)
        self._log.close()


@contextlib.contextmanager
def job_cluster(labels: dict[str, str] | None = None) -> Iterator[JobCluster]:
    """A head node that is up; its files are in a folder of its own, since pytest's are too deep for sockets."""
    with tempfile.TemporaryDirectory(prefix="head-", ignore_cleanup_errors=True) as folder, fork_server() as (_, forking):
        cluster = JobCluster(Path(folder), forking, labels=labels)
        try:
            cluster.wait_until_up()
            yield cluster
        finally:
            cluster.stop()


def kill_tree(process: subprocess.Popen, folder: Path) -> None:
    """End the process, all that descend from it, and all whose command names a file in the folder."""
    pids = {*_descendants(process.pid), *(pid for pid, text in _proc("cmdline") if f"{folder}/" in text and pid != os.getpid())}
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + patience_s
        while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
            process.poll()
            time.sleep(0.1)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, text in _proc("stat"):
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(pid)
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def ray_sassl(cluster: JobCluster, *words: str, cwd: Path = ROOT, token: str | None = TOKEN) -> tuple[int, str]:
    """The command's exit code and output, as a person with this token sees them."""
    return _output([sys.executable, "-m", "ray_sassl.cli", *_words(cluster, words)], environment(token) | _settings(cluster, cwd), cwd)


def ray_sassl_here(cluster: JobCluster, *words: str, cwd: Path, token: str = TOKEN) -> tuple[int, str]:
    """The same in this process, and so without the seconds in which a new one starts."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        for name, value in (environment(token) | _settings(cluster, cwd)).items():
            patch.setenv(name, value)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["ray-sassl", *_words(cluster, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue()


def _words(cluster: JobCluster, words: tuple[str, ...]) -> tuple[str, ...]:
    if words[:2] == ("job", "submit"):  # where several clusters share a machine, Ray lets a job take any of them unless it is told
        return (*words[:2], "--env", f"RAY_ADDRESS={cluster.gcs_address}", *words[2:])
    return words


def _settings(cluster: JobCluster, cwd: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "RAY_API_SERVER_ADDRESS": cluster.address, "HOME": str(cwd)}


def python(cluster: JobCluster, code: str) -> tuple[int, str]:
    """The exit code and output of a program that is connected to the cluster."""
    connect = f"import ray\nray.init(address={cluster.gcs_address!r}, log_to_driver=False)\n"
    return _output([sys.executable, "-c", connect + code], environment() | {"PYTHONPATH": str(ROOT)}, ROOT)


def _output(command: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    ended = subprocess.run(command, check=False, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    return ended.returncode, ended.stdout


def _proc(name: str) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / name).read_text(errors="replace")
