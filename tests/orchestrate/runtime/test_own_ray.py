"""A Ray of our own: who can reach it, where its files are, and what happens where it does not start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_sassl.orchestrate.runtime import own_ray
from ray_sassl.orchestrate.runtime.own_ray import socket_folder, starting
from ray_sassl.process.errors import UsageError

ROOT = Path(__file__).parents[3]

_LOOK = """
import json, os, sys
import ray
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray_sassl.orchestrate.runtime.rendezvous import torch_config
from ray_sassl.orchestrate.runtime.session import ray_session
from tests.orchestrate.runtime.test_own_ray import listeners
from benchmarks.processes import descendants

def work(spec):
    dist.barrier()
    if dist.get_rank() == 0:
        pids = descendants(spec["driver"])
        with open(spec["found"], "w") as file:
            json.dump([listeners(list(pids)), len(pids)], file)
    dist.barrier()

with ray_session("local", num_cpus=1):
    driver, found = os.getpid(), os.path.join(os.environ["TMPDIR"], "found")
    pids = descendants(driver)
    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
    spec, run = {"driver": driver, "found": found}, RunConfig(name="t", storage_path=os.environ["TMPDIR"])
    TorchTrainer(work, train_loop_config=spec, torch_config=torch_config(), scaling_config=scaling, run_config=run).fit()
    pids |= descendants(driver)
    print(open(found).read())
print(json.dumps([pid for pid in pids if pid != os.getpid() and os.path.exists(f"/proc/{pid}")]))
"""


def listeners(pids: list[int]) -> list[str]:
    """The addresses on which the processes listen, without ports."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                digits = fields[1].partition(":")[0]
                words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return sorted(found)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_and_its_training_workers_listen_on_the_loopback_only_it_has_short_sockets_under_a_deep_folder_and_leaves_nothing(
    forking_ray: None, tmp_path: Path
):
    deep = tmp_path / ("d" * (90 - len(str(tmp_path)) - 1))
    deep.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "HOME")}
    environment |= {"TMPDIR": str(deep), "PYTHONPATH": os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))}
    ended = subprocess.run(
        [sys.executable, "-c", _LOOK], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (addresses, num_processes), left = (json.loads(line) for line in ended.stdout.splitlines() if line.startswith("["))
    assert num_processes > 6
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}
    assert left == []


def test_a_folder_whose_path_is_too_long_for_sockets_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert socket_folder() in ("/tmp", "/var/tmp", "/dev/shm")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"at most \d+ bytes .* Set RAY_TMPDIR"):
        socket_folder()


class _Ray:
    """Stands for `ray.init`, and fails as often as told."""

    def __init__(self, failures: int) -> None:
        self.failures, self.num_calls, self.processes = failures, 0, []

    def __call__(self, **options: Any) -> None:
        self.num_calls += 1
        from ray._private import services

        self.processes.append(services.ConsolePopen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if self.num_calls <= self.failures:
            raise Exception("The current node timed out during startup. This could happen because ...")  # noqa: TRY002 - as Ray does
        self.processes[-1].kill()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_that_took_too_long_is_tried_once_more_and_then_told(failures: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stand_in = _Ray(failures)
    monkeypatch.setattr(ray, "init", stand_in)
    monkeypatch.setattr(ray, "shutdown", lambda **options: None)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    if failures == 1:
        with own_ray.own_ray(1):
            pass
    else:
        with (
            pytest.raises(UsageError, match=r"could not be started .* tried twice: The current node timed out.*Try again"),
            own_ray.own_ray(1),
        ):
            pass
    assert stand_in.num_calls == 2
    assert all(process.wait(timeout=30) for process in stand_in.processes), "what a failed start has begun is ended"


def test_the_second_try_waits_longer_for_the_node(monkeypatch: pytest.MonkeyPatch):
    from ray._private import services

    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node": 1}])

    def get_node(*args: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    with starting(patience_s=60):
        assert services.get_node("address", "id") == {"node": 1}
    assert services.get_node is get_node
