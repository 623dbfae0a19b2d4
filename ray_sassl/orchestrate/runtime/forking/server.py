"""The server of forked workers: `python server.py SOCKET MODULES MODULES`, with the number of an open socket that listens, and the names of
the modules to import before Ray and with it.

Ray reads the job's number from the environment when it is imported, so the server forks one process for each job, which imports Ray and
forks the workers of that job.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

_REQUEST_BYTES = 2**20
_FORKED = b"1"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""The environment in which libraries are imported: a process with several threads is not safe to fork."""
_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def serve(listener: socket.socket, before_ray: Sequence[str], with_ray: Sequence[str]) -> None:
    """Hand each request to the process of its job, until the standard input is closed."""
    _import(before_ray)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: dict[tuple[str | None, ...], socket.socket] = {}
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        request, streams, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
        if request:
            environment = json.loads(request)[2]
            job = tuple(environment.get(name) for name in ("RAY_RAYLET_PID", "RAY_JOB_ID", "PYTHONPATH"))
            if job not in jobs:
                jobs[job], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if os.fork() == 0:
                    for other in (listener, connection, *jobs.values()):
                        other.close()
                    for stream in streams:
                        os.close(stream)
                    _end_after(partial(_serve_job, theirs, environment, with_ray))
                theirs.close()
            try:
                socket.send_fds(jobs[job], [request], [*streams, connection.fileno()])
            except OSError:  # the process of the job has ended: the worker starts without it
                del jobs[job]
        connection.close()
        for stream in streams:
            os.close(stream)


def _serve_job(requests: socket.socket, environment: dict[str, str], with_ray: Sequence[str]) -> None:
    """Fork a worker for each request, until the server has ended."""
    _set_environment(environment | ONE_THREAD)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))  # with the code that the job has brought
    _import_with_ray(with_ray)
    if not is_safe_to_fork():
        return
    while True:
        request, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _end_after(partial(_become_worker, files, *json.loads(request)))
        for file in files:
            os.close(file)


def is_safe_to_fork() -> bool:
    """Not with several threads, of which a fork has only one, nor with a GPU that was opened, which CUDA refuses to use in a fork."""
    files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the folder itself
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    return len(os.listdir("/proc/self/task")) == 1 and not any(file.startswith(_GPUS) for file in files)


def _become_worker(files: list[int], arguments: list[str], context: str, environment: dict[str, str], folder: str) -> None:
    *streams, connection = files
    os.setpgid(0, 0)  # Ray kills the group of a worker that has ended, with what the worker has left
    os.write(connection, _FORKED)  # the connection stays open until the worker ends
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _set_environment(environment)
    os.chdir(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if context:
        _update_environment(json.loads(context).get("env_vars") or {})
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    import ray

    script = Path(ray.__file__).parent / "_private" / "workers" / "default_worker.py"
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


def _end_after(action: Callable[[], None]) -> None:
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


def _update_environment(variables: dict[str, str]) -> None:
    """As Ray does for a worker with a runtime environment: values may name other variables."""
    from ray_sassl.orchestrate.runtime import private

    private.utils.update_envs(variables)


def _import_with_ray(names: Sequence[str]) -> None:
    """Import what workers need without a draw from Ray's generator of ids: all forks would have its state, and give out the same ids."""
    import ray.actor

    drawn_by_ray = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: drawn_by_ray(os.urandom(drawn_by_ray.size())))
    try:
        _import(names)
    finally:
        ray.actor.ActorClassID = drawn_by_ray


def _import(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the pages stay shared


if __name__ == "__main__":
    number, *modules = sys.argv[1:]
    before, beside = ([name for name in names.split(",") if name] for names in modules)
    with socket.socket(fileno=int(number)) as opened:
        serve(opened, before, beside)
