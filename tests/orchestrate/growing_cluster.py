"""A cluster on one machine that grows and shrinks by itself: Ray's autoscaler with nodes that are processes, and GPUs that are
pretended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray._private.services

from benchmarks.nodes import ROOT, free_ports
from ray_sassl.orchestrate.runtime.devices import PRETEND
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL
from tests.orchestrate.job_cluster import environment, kill_tree

_HEAD_NODE = "f" * 51 + "00000"
_WATCH = f"""
import json, sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
while True:
    alive = [node for node in client.get_all_node_info().values() if node.state == 0]
    nodes = [(node.labels.get({GROUP_LABEL!r}, "head"), node.raylet_socket_name) for node in alive]
    print(json.dumps(dict(time=time.time(), nodes=nodes)), flush=True)
    time.sleep(0.25)
"""


@dataclass(frozen=True)
class Group:
    """Nodes of one kind."""

    most: int
    resources: dict[str, float]


@dataclass(frozen=True)
class Look:
    """What was there at a moment.

    Attributes:
        time: Seconds since 1970.
        nodes: The group of each node that is up and the name of its raylet's socket.
    """

    time: float
    nodes: list[tuple[str, str]]

    def count(self, group: str) -> int:
        return sum(one == group for one, _ in self.nodes)

    @property
    def workers(self) -> int:
        return sum(group != "head" for group, _ in self.nodes)


class GrowingCluster:
    """A head without work of its own, and groups that start from zero; it is watched four times a second.

    Args:
        folder: For Ray's files; its path must be short, as sockets are in it.
        groups: By name.
        idle_s: After which an idle node goes.
    """

    def __init__(self, folder: Path, groups: dict[str, Group], idle_s: float = 8) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        gcs, client, agent, agent_grpc, metrics, env_agent = free_ports(6)
        self.address = f"{ray._private.services.get_node_ip_address()}:{gcs}"
        self.environment = environment() | {PRETEND: "1", "PYTHONPATH": str(ROOT)}
        self._folder = folder
        types = {
            name: {
                "resources": group.resources,
                "labels": {GROUP_LABEL: name},
                "min_workers": 0,
                "max_workers": group.most,
                "idle_timeout_s": idle_s,
                "node_config": {},
            }
            for name, group in groups.items()
        }
        head = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
        config = {
            "cluster_name": "growing",
            "max_workers": sum(group.most for group in groups.values()),
            "idle_timeout_minutes": idle_s / 60,
            "upscaling_speed": 10.0,
            "provider": {
                "type": "external",
                "module": "tests.orchestrate.pretended_nodes.PretendedNodes",
                "gcs_address": self.address,
                "head_node_id": _HEAD_NODE,
                "launch_multiple": True,
            },
            "available_node_types": types | head,
            "head_node_type": "ray.head.default",
            **{key: {} for key in ("auth", "file_mounts", "docker")},
            **{key: [] for key in _LISTS},
            "file_mounts_sync_continuously": False,
        }
        (folder / "autoscaling.json").write_text(json.dumps(config))
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}",
            "--num-cpus=0",
            "--num-gpus=0", f"--autoscaling-config={folder / 'autoscaling.json'}", "--include-dashboard=false", "--disable-usage-stats",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={env_agent}", "--min-worker-port=0",
            "--max-worker-port=0", "--object-store-memory=150000000",
        ]  # fmt: skip
        settings = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD_NODE,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_NODE,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_worker_niceness": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._head = self._start("head", command, self.environment | settings)
        self._watch: subprocess.Popen[bytes] | None = None

    def wait_until_up(self, timeout_s: float = 240) -> None:
        """Until the head has registered."""
        self._watch = self._start("watch", [sys.executable, "-c", _WATCH, self.address], self.environment)
        self.wait_for(lambda look: look.count("head") == 1, timeout_s)

    def looks(self) -> list[Look]:
        """All moments until now."""
        lines = (self._folder / "watch.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [Look(entry["time"], [(group, socket) for group, socket in entry["nodes"]]) for entry in entries]

    def wait_for(self, wanted: Callable[[Look], bool], timeout_s: float) -> Look:
        """The first new moment that is as wanted."""
        began = time.time()
        while time.time() < began + timeout_s:
            for look in self.looks():
                if look.time >= began and wanted(look):
                    return look
            if self._head.poll() is not None:
                raise RuntimeError(f"the head has ended: {(self._folder / 'head.log').read_text()[-2000:]}")
            time.sleep(0.25)
        raise TimeoutError(
            f"not within {timeout_s:g} s; last: {self.looks()[-1:]}; head: {(self._folder / 'head.log').read_text()[-1000:]}"
        )

    def wait_until_quiet(self, quiet_s: float, timeout_s: float) -> None:
        """Until there has been no node but the head for so long: one that was asked for may still come after the work is done."""
        began = time.time()
        while time.time() < began + timeout_s:
            latest = [look for look in self.looks() if look.time >= time.time() - quiet_s]
            if time.time() >= began + quiet_s and latest and all(look.workers == 0 for look in latest):
                return
            time.sleep(0.25)
        raise TimeoutError(f"nodes came and went for {timeout_s:g} s; last: {self.looks()[-1:]}")

    def start_driver(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """`ray-sassl WORDS` on the cluster; its output is in `NAME.log`."""
        return self._start(name, [sys.executable, "-m", "ray_sassl.cli", *words, "--address", self.address], self.environment)

    def output(self, name: str) -> str:
        """What a driver has printed."""
        return (self._folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """End all that was started."""
        for process in (self._watch, self._head):
            if process is not None:
                kill_tree(process, self._folder)

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self._folder)


_LISTS = (
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
