"""Batches on their way to a device: in the order of the stream, and without a wait in a step."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ray_sassl.nn.normalize import Normalization
from ray_sassl.nn.upload import upload
from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.train.config import OptimConfig, Progress, TrainConfig
from ray_sassl.train.context import LocalContext
from ray_sassl.train.divergence import DivergenceWatch
from ray_sassl.train.loop import Job, _update, train
from ray_sassl.train.optim import build_optimizer
from ray_sassl.train.prefetch import Prefetcher, to_device
from ray_sassl.types import TARGETS, Arrays
from tests.train.test_loop import SGD, Linear, _batches

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: reads of its values, and copies to it or from it that block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        devices = {value.device.type for value in args if isinstance(value, torch.Tensor)}
        if name == "_local_scalar_dense" and devices != {"cpu"}:
            self.counts[name] += 1
            return 0.0  # a device without values has none to give
        result = func(*args, **kwargs)
        made_on = result.device.type if isinstance(result, torch.Tensor) else None
        if name == "_to_copy" and made_on not in (None, *devices) and not kwargs.get("non_blocking"):
            self.counts[name] += 1
        if name == "copy_" and len(devices) > 1 and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
            self.counts[name] += 1
        return result


class Constants(TorchFunctionMode):
    """Counts tensors that are made of Python numbers for a device: on the host, and then copied."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.counts["tensor"] += 1
        return func(*args, **kwargs)


def test_what_waits_is_counted():
    with Waits() as waits, Constants(waits.counts):
        x = torch.zeros(2, device=META)
        _ = x[0].item()
        _ = torch.ones(2).to(META)
        _ = torch.tensor([1.0, 2.0], device=META)
        x.copy_(torch.ones(2))
        _ = upload(torch.ones(2), META)
        _ = torch.where(x > 0, x, 1.0)
    assert waits.counts == {"_local_scalar_dense": 1, "_to_copy": 1, "tensor": 1, "copy_": 1}


class Encoder(torch.nn.Module):
    """A convolution, batch normalization and pooling: (B, 3, H, W) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


CASES = [(name, "sgd") for name in plugin_names("ray_sassl.methods")] + [("simclr", "lars"), ("simclr", "adamw")]


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_step_waits_for_nothing_on_its_device(tmp_path, monkeypatch, name, optimizer):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # which this device does not know
    config = load_plugin("ray_sassl.methods", name).Config.tiny()
    method = config.build(Encoder(), 8).to(META)
    settings = TrainConfig(epochs=2, global_batch=16, clip_norm=1.0)
    job = Job(method, iter(()), settings, OptimConfig(name=optimizer), 32, 0, str(tmp_path), "", LocalContext(device=META))
    pixels, progress = Normalization(settings.pixel_mean, settings.pixel_std, META), Progress(32, 16, 2)
    watch, updates = DivergenceWatch(META, every_step=False), build_optimizer(method, job.optim)
    views = {f"view_{number}": np.zeros((16, 12, 12, 3), np.uint8) for number in range(3 if config.takes_small_views else 2)}
    feed = Prefetcher(iter([{**views, "sample_id": np.arange(16), "epoch": np.zeros(16, np.int64)}] * 2), 1, META, 2, is_ahead=False)
    with Waits() as waits, Constants(waits.counts):
        for step in range(2):
            parts = feed.take()
            assert parts is not None
            output = _update(method, method, updates, parts, job, pixels, step, progress)
            method.after_step((step + 1) / 4)
            watch.note(step + 1, [part.loss for part in output], [part.rows for part in parts])
            assert not watch.has_seen_one(look=False)
    assert not waits.counts


def test_batches_are_taken_in_the_order_of_the_stream_and_not_beyond_the_last_step():
    stream = iter([{"view_0": np.full((2, 4, 4, 3), n, np.uint8), "sample_id": np.array([n, n]), "epoch": np.zeros(2)} for n in range(9)])
    feed = Prefetcher(stream, 2, torch.device("cpu"), num_steps=3, is_ahead=True)
    taken = [[int(part.rows["sample_id"][0]) for part in feed.take() or ()] for _ in range(3)]
    feed.close()
    assert taken == [[0, 1], [2, 3], [4, 5]]
    assert next(stream)["sample_id"][0] == 6


def test_the_next_batch_is_taken_while_the_step_runs():
    second_is_taken = threading.Event()

    def stream() -> Iterator[Arrays]:
        first, second = _batches(8, 4)
        yield first
        second_is_taken.set()
        yield second

    feed = Prefetcher(stream(), 1, torch.device("cpu"), num_steps=2, is_ahead=True)
    assert feed.take() is not None
    assert second_is_taken.wait(timeout=30)
    assert feed.take() is not None
    feed.close()


def test_an_error_of_the_stream_reaches_the_loop():
    def stream() -> Iterator[Arrays]:
        yield next(_batches(4, 4))
        raise ValueError("the stream broke")

    feed = Prefetcher(stream(), 1, torch.device("cpu"), num_steps=3, is_ahead=True)
    assert feed.take() is not None
    with pytest.raises(ValueError, match="the stream broke"):
        feed.take()
    feed.close()


def test_a_run_that_takes_ahead_has_the_same_weights_and_samples(tmp_path):
    settings, weights = TrainConfig(epochs=2, global_batch=4, log_every=1), []
    for is_ahead in (False, True):
        method, context = Linear(), LocalContext()
        run_dir = str(tmp_path / str(is_ahead))
        train(Job(method, _batches(12, 4, 2), settings, SGD, 12, 0, run_dir, "", context, is_ahead=is_ahead))
        weights.append((method.backbone.weight.tolist(), [report["loss"] for report in context.reports]))
    assert weights[0] == weights[1]


def test_a_batch_keeps_its_rows_on_the_host():
    arrays = next(_batches(4, 4))
    assert to_device(arrays, META).rows["sample_id"] is arrays["sample_id"]


def test_all_tensors_of_a_batch_are_handed_to_the_stream_that_uses_them():
    arrays = {"view_0": np.zeros((2, 4, 4, 3), np.uint8), "view_1": np.zeros((2, 4, 4, 3), np.uint8), TARGETS: np.zeros((2, 5), np.float16)}
    batch = to_device({**arrays, "sample_id": np.arange(2), "epoch": np.zeros(2, np.int64)}, torch.device("cpu"))
    held = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)] + batch.views
    assert {id(tensor) for tensor in batch.tensors()} == {id(tensor) for tensor in held}
    assert len(batch.tensors()) == 4
