"""Workers of a Ray of our own that are forked from a process which has imported torch and Ray already.

A worker that Ray starts spends one to two CPU-seconds on imports, or four where it needs torch, and a run starts ten of them. Here a server
(`server.py`) imports everything once. Ray starts `setup_worker.py` in place of its own script of that name, which hands its arguments,
environment and standard streams to the server, and waits until the forked worker has ended. Where the server cannot fork, the script
becomes the worker that Ray would have started.

Linux only: elsewhere libraries may not be forked.
"""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ray_sassl.orchestrate.runtime import private
from ray_sassl.orchestrate.runtime.forking.server import ONE_THREAD

FORKS = "RAY_SASSL_FORKS"
"""The environment variable with the path of the socket of a server to use, or `off`."""
OFF = "off"
SETUP_WORKER = Path(__file__).with_name("setup_worker.py")
_SERVER = Path(__file__).with_name("server.py")

BEFORE_RAY = (
    "torch",
    "torchvision",
    "timm",
    "sklearn.linear_model",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "ray_sassl.runs.process",
)


@contextmanager
def forked_workers(folder: str) -> Iterator[None]:
    """Within the block, a Ray that is started forks its workers; they have imported what this process has.

    Args:
        folder: Of Ray's sockets.
    """
    given = os.environ.get(FORKS)
    if sys.platform != "linux" or given == OFF:
        yield
        return
    services: Any = private.services
    start_raylet = services.start_raylet

    def start(*args: Any, **options: Any) -> Any:
        bound = inspect.signature(start_raylet).bind(*args, **options)
        bound.arguments |= {"worker_path": str(SETUP_WORKER), "setup_worker_path": str(SETUP_WORKER)}
        return start_raylet(*bound.args, **bound.kwargs)

    path = str(Path(folder) / "forks")
    before_ray = [name for name in BEFORE_RAY if name in sys.modules]
    with_ray = [name for name in sys.modules if name.startswith("ray_sassl.orchestrate.") or name in ("ray.data", "ray.train", "ray.tune")]
    with nullcontext() if given else fork_server(path, before_ray, with_ray):
        services.start_raylet, os.environ[FORKS] = start, given or path
        try:
            yield
        finally:
            services.start_raylet = start_raylet
            if not given:
                del os.environ[FORKS]


@contextmanager
def fork_server(path: str, before_ray: Sequence[str], with_ray: Sequence[str]) -> Iterator[int]:
    """The number of the server's process, below which all workers are.

    Args:
        path: Of its socket.
        before_ray: Modules to import that do not import Ray.
        with_ray: Further modules, which may.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(128)
        command = [sys.executable, str(_SERVER), str(listener.fileno()), ",".join(before_ray), ",".join(with_ray)]
        process = subprocess.Popen(
            command,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    with process:
        assert process.stdin is not None
        try:
            yield process.pid
        finally:
            process.stdin.close()  # which ends it
