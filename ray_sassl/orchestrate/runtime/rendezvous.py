"""How training workers find each other. torch's store listens on all interfaces by itself; on one machine it listens on the loopback."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import ray
import ray.util
import torch.distributed as dist
from ray.train.torch import TorchConfig

_LOOPBACK = "127.0.0.1"
_TorchBackend: Any = TorchConfig().backend_cls


def torch_config(backend: str | None = None) -> TorchConfig:
    """How the workers of a job connect. Where Ray itself listens on the loopback, as a Ray of our own does, so does torch's store.

    Args:
        backend: torch's backend; by default nccl for workers with GPUs, and gloo for others.
    """
    return (_OnLoopback if ray.util.get_node_ip_address() == _LOOPBACK else TorchConfig)(backend=backend)


class _OnLoopback(TorchConfig):
    @property
    def backend_cls(self) -> Any:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        count = len(worker_group)
        backend = backend_config.backend or ("nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo")
        port = worker_group.execute_single(0, _open_store, count, backend_config.timeout_s)
        joining = [
            worker_group.execute_single_async(rank, _join, backend, rank, count, port, backend_config.timeout_s) for rank in range(count)
        ]
        ray.get(joining)


_opened: list[dist.TCPStore] = []
"""In the worker of rank 0, the store, until it has joined."""


def _open_store(count: int, timeout_s: float) -> int:
    """Open the store in this process; returns its port."""
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    timeout = timedelta(seconds=timeout_s)
    _opened[:] = [dist.TCPStore(_LOOPBACK, port, count, True, timeout, False, master_listen_fd=listening.detach())]
    return port


def _join(backend: str, rank: int, count: int, port: int, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(_LOOPBACK, port, count, False, timeout) if rank else _opened.pop()
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
