"""Ray workers that are forked from a process which has imported torch and Ray already.

A worker that Ray starts spends a CPU-second on imports, or four where it needs torch, and a training job starts ten of them. Here a server
imports everything once. Ray reads the job's number from the environment when it is imported, so that the server forks one process for each
job, which imports Ray and forks the workers of that job.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

_SOCKET = "RAY_SASSL_FORKS"
_REQUEST_BYTES = 2**20
_BEFORE_RAY = (
    "torch",
    "torchvision",
    "timm",
    "sklearn.linear_model",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "ray_sassl.runs.process",
)
_WITH_RAY = ("ray.train.torch", "ray.tune", "ray_sassl.orchestrate.pretraining.launch", "ray_sassl.orchestrate.tune.search")


@contextlib.contextmanager
def fork_server() -> Iterator[tuple[int, dict[str, str]]]:
    """The number of the server's process, below which all workers are, and the environment that a Ray must be started with to have them."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:  # pytest's folders are too deep for sockets
        path = str(Path(folder) / "socket")
        # A process with several threads is not safe to fork.
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        command = [sys.executable, __file__, path]
        with subprocess.Popen(
            command, env=os.environ | one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                assert server.stdout.readline() == b"ready\n", "the server of forked workers has ended"
                here = str(Path(__file__).parent)
                yield server.pid, {_SOCKET: path, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
            finally:
                server.stdin.close()  # which ends it


def _serve(path: str) -> None:
    """Hand each request to the process of its job, until the standard input is closed."""
    _import(_BEFORE_RAY)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    jobs: dict[tuple[str | None, ...], socket.socket] = {}
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        request, streams, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
        _, environment, _ = json.loads(request)
        job = tuple(environment.get(name) for name in ("RAY_RAYLET_PID", "RAY_JOB_ID", "PYTHONPATH"))
        if job not in jobs:
            jobs[job], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                for other in (listener, connection, *jobs.values()):
                    other.close()
                _end_after(lambda theirs=theirs, environment=environment: _serve_job(theirs, environment))
            theirs.close()
        socket.send_fds(jobs[job], [request], [*streams, connection.fileno()])
        connection.close()
        for stream in streams:
            os.close(stream)


def _serve_job(requests: socket.socket, environment: dict[str, str]) -> None:
    """Fork a worker for each request, until the server has ended."""
    _set_environment(environment)
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)  # with the code that the job has brought
    _import_ray()
    while True:
        request, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _end_after(lambda request=request, files=files: _become_worker(*json.loads(request), files[:3]))
        for file in files:
            os.close(file)


def _become_worker(argv: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    os.setpgid(0, 0)  # Ray kills the group of a worker that has ended, with what the worker has left
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _set_environment(environment)
    os.chdir(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = _without_setup(argv)
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _without_setup(argv: list[str]) -> list[str]:
    """Do what Ray's `setup_worker.py` does before the worker begins, where it comes first; returns the worker's own arguments."""
    from ray._private.runtime_env.context import RuntimeEnvContext, update_envs
    from ray._private.workers.setup_worker import parser

    if not argv[0].endswith("/setup_worker.py"):
        return argv
    args, rest = parser.parse_known_args(argv[1:])
    update_envs(RuntimeEnvContext.deserialize(args.serialized_runtime_env_context or "{}").env_vars)
    return rest


def _end_after(action) -> None:
    """Do what a forked process is for, and end it without what its parent has planned for its own end."""
    code = 1
    try:
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - shown as Python itself would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _import_ray() -> None:
    """Import what workers need without a draw from Ray's generator of ids: all forks would have its state, and give out the same ids."""
    import ray.actor

    drawn_by_ray = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: drawn_by_ray(os.urandom(drawn_by_ray.size())))
    try:
        _import(_WITH_RAY)
    finally:
        ray.actor.ActorClassID = drawn_by_ray


def _import(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the pages stay shared


if __name__ == "__main__":
    _serve(sys.argv[1])
