"""Forked workers are as different from one another as those that Ray starts, and Ray starts its own where none can be forked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import ray

from ray_sassl.orchestrate.runtime import forking

ROOT = Path(__file__).parents[3]


class Worker:
    def drawn(self) -> tuple[str, str, float]:
        """Ids that Ray draws, of a worker and of an object that is put, and a number from numpy's own generator."""
        import numpy as np

        return ray.WorkerID.from_random().hex(), ray.put(1).hex(), float(np.random.random())

    def process(self) -> tuple[int, int, bool, str | None]:
        """Its number, that of its group, whether torch is there, and a variable of its environment."""
        return os.getpid(), os.getpgid(0), "torch" in sys.modules, os.environ.get("OF_ONE")


def _workers(number: int, **options: Any) -> list[Any]:
    return [cast(Any, ray.remote)(num_cpus=0, **options)(Worker).remote() for _ in range(number)]


@pytest.mark.ray
def test_no_two_workers_draw_the_same_ids_and_numbers(ray_cluster: None):
    drawn = ray.get([worker.drawn.remote() for worker in _workers(3)])
    assert len({one for values in drawn for one in values}) == 9


@pytest.mark.ray
def test_a_worker_has_a_process_group_and_an_environment_of_its_own(ray_cluster: None):
    workers = _workers(1) + _workers(1, runtime_env={"env_vars": {"OF_ONE": "yes"}})
    (pid, group, has_torch, variable), (other_pid, other_group, _, other_variable) = ray.get([one.process.remote() for one in workers])
    assert has_torch
    assert (pid, other_pid) == (group, other_group)
    assert pid != other_pid
    assert (variable, other_variable) == (None, "yes")


_LOOK = """
import json, os, time
import ray
import ray_sassl.orchestrate.pretraining.reading
from benchmarks.measuring import command, tree
from ray_sassl.orchestrate.runtime.session import ray_session

@ray.remote(num_cpus=1)
def look():
    import sys
    return "ray_sassl.orchestrate.pretraining.reading" in sys.modules, "torch" in sys.modules, "server.py" in command(os.getppid())

with ray_session("local", num_cpus=1):
    found = ray.get(look.remote())
    pids = tree(os.getpid())
    commands = [command(pid) for pid in pids]
print(json.dumps([*found, commands, [pid for pid in pids[1:] if os.path.exists(f"/proc/{pid}")]]))
"""


def _looked(**environment: str) -> tuple[bool, bool, bool, list[str], list[int]]:
    """Of a worker of a Ray of our own: whether it had the modules of the command before its task, torch, and a fork server as its parent;
    the commands of all processes, and those that are left after it."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS", forking.FORKS)}
    clean |= {"PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"} | environment
    ended = subprocess.run([sys.executable, "-c", _LOOK], env=clean, capture_output=True, text=True, cwd=ROOT, timeout=600, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_of_a_ray_of_our_own_have_what_the_command_has_imported_and_idle_services_are_not_started():
    has_modules, has_torch, is_forked, commands, left = _looked()
    assert (has_modules, has_torch, is_forked) == (True, False, True)
    assert left == []
    for idle in ("log_monitor.py", "monitor.py"):
        assert not any(idle in words for words in commands), idle
    assert any("dashboard/dashboard.py" in words for words in commands), "Ray Train would look for its address at each run's end, for 12 s"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("given", [forking.OFF, "/nowhere/socket"])
def test_without_a_server_workers_are_those_that_ray_starts(given: str):
    has_modules, _, is_forked, _, left = _looked(**{forking.FORKS: given})
    assert (has_modules, is_forked) == (False, False)
    assert left == []


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_worker", forking.SETUP_WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Became(Exception):
    pass


def _became(script: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the script turns the process into."""

    def become(_: str, words: list[str]) -> None:
        raise _Became(words)

    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(_Became) as became:
        script.main(words)
    return became.value.args[0][1:]


_CONTEXT = "--serialized-runtime-env-context=" + json.dumps({"env_vars": {"A": "1"}, "py_executable": sys.executable})


@pytest.mark.parametrize(
    "prepare",
    [
        lambda words: words,  # no socket is there
        lambda words: [*words, "--worker-type=SPILL_WORKER"],
        lambda words: [word.replace(json.dumps(sys.executable), '"/other/python"') for word in words],
    ],
)
def test_a_worker_that_cannot_be_forked_is_started_as_ray_would(
    prepare: Callable[[list[str]], list[str]], script: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    own = str(forking.SETUP_WORKER)
    monkeypatch.setenv(forking.FORKS, "/nowhere/socket")
    words = prepare([_CONTEXT, "--language=PYTHON", own, "--node-id=1"])
    setup, context, language, worker, *arguments = _became(script, words, monkeypatch)
    workers = Path(str(ray.__file__)).parent / "_private/workers"
    assert (setup, worker) == (str(workers / "setup_worker.py"), str(workers / "default_worker.py"))
    assert (context, language) == (words[0], "--language=PYTHON")
    assert arguments == words[3:]
    assert _became(script, [own, *words[3:]], monkeypatch) == [worker, *words[3:]], "without a runtime environment"


_THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.parametrize("module", ["raise ImportError", _THREAD])
def test_a_worker_is_started_as_ray_would_where_the_server_cannot_import_or_is_not_safe_to_fork(
    module: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "of_a_user.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as folder:
        path = str(Path(folder) / "socket")
        with forking.fork_server(path, [], ["of_a_user"]):
            monkeypatch.setenv(forking.FORKS, path)
            assert _became(script, ["--node-id=1"], monkeypatch)[1:] == ["--node-id=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.parametrize(
    ("first", "is_safe"),
    [
        ("", True),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", False),
        ("server._GPUS = (FILE,); opened = open(FILE)", False),
        ("import torch, torchvision, timm", True),
    ],
)
def test_a_process_with_threads_or_an_open_gpu_is_not_forked(first: str, is_safe: bool, tmp_path: Path):
    (tmp_path / "gpu").touch()
    code = f"from ray_sassl.orchestrate.runtime.forking import server\nFILE = {str(tmp_path / 'gpu')!r}\n{first}\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}print(server.is_safe_to_fork())"],
        env=os.environ | forking.ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == [str(is_safe)]
