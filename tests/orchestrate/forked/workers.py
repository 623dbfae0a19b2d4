"""A server of forked workers for Rays of tests, which has imported all that any of their workers needs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_sassl.orchestrate.runtime import forking

_WITH_RAY = ("ray.train.torch", "ray.tune", "ray_sassl.orchestrate.pretraining.launch", "ray_sassl.orchestrate.tune.search")


@contextmanager
def fork_server() -> Iterator[tuple[int, dict[str, str]]]:
    """The number of the server's process, below which all workers are, and the environment that a Ray must be started with to have them."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:  # pytest's folders are too deep for sockets
        path = str(Path(folder) / "socket")
        with forking.fork_server(path, forking.BEFORE_RAY, _WITH_RAY) as pid:
            here = str(Path(__file__).parent)
            yield pid, {forking.FORKS: path, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
