"""Linear classifiers by stochastic gradient descent: several learning rates at once, on fixed features or on new crops in every epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.evaluation import Subject
from ray_sassl.evaluation.rows import Rows, as_rows

log = logging.getLogger(__name__)

_SAY_EVERY_S = 20.0

Batches = Iterable[tuple[Tensor, Tensor]]
"""Standardized features (B, F) and labels (B,), on the device."""


def fit_sgd(
    batches: Batches,
    num_steps: int,
    num_features: int,
    num_classes: int,
    rates: Sequence[float],
    l2: float,
    momentum: float,
    device: torch.device,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (C, F) and biases (C,) of one classifier per learning rate, initially zero; they are independent but use the same batches.

    Args:
        num_steps: Approximate number of batches: the length of the cosine along which the rates fall to 0.
        rates: Learning rates for rows of unit length; they are divided by the number of features, the squared length of standardized rows.
        l2: Weight of the penalty on the squared weights (not the biases).
        momentum: Nesterov momentum; 0 for none.
    """
    layers = [cast(nn.Linear, nn.utils.skip_init(nn.Linear, num_features, num_classes, device=device)) for _ in rates]
    groups = []
    for layer, rate in zip(layers, rates, strict=True):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups += [{"params": [layer.weight], "weight_decay": l2, "lr": rate / num_features}]
        groups += [{"params": [layer.bias], "weight_decay": 0.0, "lr": rate / num_features}]
    optimizer = torch.optim.SGD(groups, groups[0]["lr"], momentum, nesterov=momentum > 0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    began = said = time.monotonic()
    for step, (x, labels) in enumerate(batches):
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(layer(x), labels) for layer in layers]).sum().backward()
        optimizer.step()
        if step + 1 < num_steps:
            schedule.step()
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            log.info("Step %d of %d, %.0f s passed", step + 1, num_steps, said - began)
    return [(layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()) for layer in layers]


def fixed_rows(x: Rows | np.ndarray, labels: np.ndarray, epochs: int, batch_size: int, seed: int, device: torch.device) -> Batches:
    """The rows of x (N, F) with their labels (N,), in a new order each epoch."""
    rows, targets = as_rows(x), torch.from_numpy(labels).to(device)
    generator = torch.Generator().manual_seed(seed)
    kept = None if rows.kept is None else torch.from_numpy(rows.kept).to(device)
    for _ in range(epochs):
        for places in torch.randperm(len(rows), generator=generator).split(batch_size):
            there = places.to(device)
            yield kept[there] if kept is not None else torch.from_numpy(rows.take(places.numpy())).to(device), targets[there]


def new_crops(
    subject: Subject,
    sample_id: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray],
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardized features of crops of these train images, new in each epoch, by the frozen encoder.

    Args:
        moments: Mean and deviation (F,) for standardizing the features.
    """
    mean, deviation = moments
    for features, labels in subject.training_features(sample_id, epochs, batch_size, seed):
        x = (features - mean) / deviation
        yield torch.from_numpy(x.astype(np.float32)).to(device), torch.from_numpy(np.asarray(labels, np.int64)).to(device)


def steps_of(num_images: int, epochs: int, batch_size: int) -> int:
    """The number of batches of all epochs."""
    return epochs * math.ceil(num_images / batch_size)
