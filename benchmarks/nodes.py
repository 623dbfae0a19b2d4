"""A Ray cluster of several nodes on one machine, whose nodes can be killed, announced to go away and replaced.

Each node is a `ray start` of its own with ports of its own; a node is ended by the numbers of its processes, as where a machine's power
goes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import descendants, kill_all

ROOT = Path(__file__).resolve().parents[1]
_RAY = str(Path(sys.executable).with_name("ray"))
_OBJECT_STORE_BYTES = 150_000_000
_TRIES = 3
_WAIT = """
import sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
while sum(node.state == 0 for node in client.get_all_node_info().values()) < int(sys.argv[2]):
    time.sleep(0.25)
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class Node:
    """A node: its `ray start` process and Ray's number of it."""

    process: subprocess.Popen[bytes]
    node_id: str

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass
class Nodes:
    """The cluster; `address` is for `--address`.

    Attributes:
        folder: For Ray's files and the nodes' logs; its path must be short.
        workers: The nodes beside the head, which takes no work.
    """

    folder: Path
    workers: list[Node] = field(default_factory=list)
    address: str = ""
    head: Node | None = None

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_worker_niceness": "0",  # else Ray's workers give way to all else on the machine
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, num_workers: int, num_cpus: int = 2) -> None:
        """The head, and nodes of so many CPUs."""
        for number in range(_TRIES):
            (port,) = free_ports(1)
            self.address = f"127.0.0.1:{port}"
            flags = ["--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0", f"--temp-dir={self.folder}"]
            self.head = self._begin(flags, "head")
            if self._answers(self.head) or number == _TRIES - 1:
                break
            kill_all(self.head.pid)
        for number in range(num_workers):
            self.add(num_cpus)
            self.wait_for(2 + number)  # nodes of one folder that start at once take each other's sockets

    def wait_for(self, count: int, patience_s: float = 240) -> None:
        """Until Ray knows of so many nodes: what is begun before would find the cluster too small."""
        command = [sys.executable, "-c", _WAIT, self.address, str(count)]
        subprocess.run(command, env=self.environment, check=True, timeout=patience_s)

    def add(self, num_cpus: int = 2, store_bytes: int = _OBJECT_STORE_BYTES, group: str = "") -> Node:
        """One more node; Ray knows of it a few seconds later."""
        flags = [f"--address={self.address}", f"--num-cpus={num_cpus}", *([f"--labels=ray-sassl/group={group}"] if group else [])]
        node = self._begin(flags, f"node-{len(list(self.folder.glob('node-*.log')))}", store_bytes)
        self.workers.append(node)
        return node

    def kill(self, node: Node) -> None:
        """SIGKILL to all of the node's processes."""
        kill_all(node.pid)
        node.process.wait()
        self.workers.remove(node)

    def announce_end(self, node: Node, seconds: int) -> None:
        """What a cloud's notice leads to: the node will be gone in so many seconds, and gets no more work."""
        command = [_RAY, "drain-node", f"--address={self.address}", f"--node-id={node.node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=120)

    def processes(self) -> list[int]:
        """The roots of all nodes that are alive."""
        return [node.pid for node in [*self.workers, *([self.head] if self.head else [])]]

    def stop(self) -> None:
        """End all that came from the cluster."""
        pids = descendants(*self.processes())
        for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 1.0)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(patience_s)
        for node in [*self.workers, *([self.head] if self.head else [])]:
            node.process.wait()

    def _begin(self, flags: list[str], name: str, store_bytes: int = _OBJECT_STORE_BYTES) -> Node:
        agent, agent_grpc, metrics, env_agent, client = free_ports(5)
        node_id = secrets.token_hex(28)
        command = [_RAY, "start", "--block", "--disable-usage-stats", f"--object-store-memory={store_bytes}"]
        command += [
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}",
        ]
        command += [f"--runtime-env-agent-port={env_agent}", "--min-worker-port=0", "--max-worker-port=0", *flags]
        if "--head" in flags:
            command.append(f"--ray-client-server-port={client}")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        return Node(process, node_id)

    def _answers(self, node: Node, patience_s: float = 180) -> bool:
        until = time.monotonic() + patience_s
        while time.monotonic() < until and node.process.poll() is None:
            asked = subprocess.run(
                [_RAY, "health-check", "--address", self.address], env=self.environment, capture_output=True, check=False
            )
            if asked.returncode == 0:
                return True
            time.sleep(1)
        return False


@contextlib.contextmanager
def running_nodes(num_workers: int) -> Iterator[Nodes]:
    """A head and so many nodes that are up, in a folder whose path is short enough for sockets; all of it is gone afterward."""
    with tempfile.TemporaryDirectory(prefix="rs-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder))
        try:
            nodes.start(num_workers)
            yield nodes
        finally:
            nodes.stop()
