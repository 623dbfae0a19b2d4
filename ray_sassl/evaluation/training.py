"""Supervised training of a classifier on top of an encoder, shared by fine-tuning on all labels and on a few of them.

SGD with Nesterov momentum on random crops, mirrored half of the time; the learning rate falls to 0 along a half cosine; the classifier
starts at zero. So do SimCLR (Chen et al. 2020, arXiv 2002.05709, appendices B.5 and B.8) and BYOL (Grill et al. 2020, arXiv 2006.07733,
appendices C.2 and D). Running statistics of batch normalization move by 10 / steps of an epoch, at most 0.1, as in SimCLR, appendix B.8.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ray_sassl.evaluation import Evaluation, Score, Subject
from ray_sassl.evaluation.features import evaluation_mode, features_of
from ray_sassl.evaluation.figures import curves
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.rows import chunks
from ray_sassl.evaluation.scores import check_classes, classification_scores, evaluation_device
from ray_sassl.evaluation.splits import held_out
from ray_sassl.nn.normalize import normalize
from ray_sassl.process.errors import UsageError
from ray_sassl.train.divergence import DivergedError
from ray_sassl.train.optim import decay_groups

log = logging.getLogger(__name__)

PositiveNumber = Annotated[float, Field(gt=0)]
_PREDICTED_AT_ONCE = 256
_SAY_EVERY_S = 20.0


class TrainingConfig(ProtocolConfig, ABC):
    """How a classifier is trained on top of the encoder.

    Attributes:
        batch_size: Images per update.
        learning_rate: The encoder's learning rate for a batch of 256 (SimCLR, B.5); it is scaled with the batch. If it is a list, each rate
            is tried with a part of the train images held out, and the best one is used to train on all.
        head_factor: Ratio of the classifier's learning rate to the encoder's; 1 in SimCLR and BYOL.
        validation_share: Share of each class's train images that is held out to choose the learning rate; our choice.
        sgd_momentum: Nesterov momentum of SGD.
        weight_decay: Weight decay of matrices and kernels; none in SimCLR's and BYOL's semi-supervised form.
        batch_norm: "train" normalizes by each batch and lets the running statistics follow, "fixed" keeps and uses those of pretraining.
        precision: Precision of the forward pass.
        seed: Seed of the crops, the order of the images, and the choice of held-out images.
        device: Where to train; "auto" is the GPU if there is one.
    """

    batch_size: int = Field(default=256, ge=2)
    learning_rate: PositiveNumber | Annotated[tuple[PositiveNumber, ...], Field(min_length=1)] = 0.05
    head_factor: float = Field(default=1.0, gt=0)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_norm: Literal["train", "fixed"] = "train"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def sees_encoder(self) -> bool:
        return True


class Classifier(nn.Module):
    """An encoder with a linear classifier that starts at zero: (B, 3, S, S) -> (B, C)."""

    def __init__(self, encoder: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = cast(nn.Linear, nn.utils.skip_init(nn.Linear, num_features, num_classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def evaluate_by_training(subject: Subject, sample_id: np.ndarray, labels: np.ndarray, epochs: int, config: TrainingConfig) -> Evaluation:
    """Scores of a classifier whose encoder was trained with it on these train images; the subject's encoder is not changed.

    Args:
        sample_id: (N,) int64, the train images.
        labels: (N,) int64.
        epochs: Passes over them.

    Raises:
        UsageError: there are fewer than two classes, a class has test images and no train images, or the loss grows without bound.
    """
    check_classes(labels, subject.labels("test")[1], subject.class_names)
    if len(np.unique(labels)) < 2:
        raise UsageError("a classifier needs train images of at least two classes")
    num_classes = max(int(labels.max()) + 1, len(subject.class_names))
    learning_rate, details = _chosen_rate(subject, sample_id, labels, num_classes, epochs, config)
    network, losses = train_classifier(subject, sample_id, num_classes, epochs, learning_rate, config)
    outputs = subject.outputs(network.cpu())
    scores, predictions = classification_scores(map(torch.from_numpy, chunks(outputs.features)), outputs)
    details |= {"learning_rate": learning_rate, "num_train": len(sample_id), "loss_by_epoch": losses}
    figures = {"loss": curves(np.arange(1, len(losses) + 1).tolist(), {"": losses}, "epoch", "cross-entropy on random crops")}
    return Evaluation({**scores, "train_loss": Score(losses[-1])}, figures, details, predictions)


def train_classifier(
    subject: Subject, sample_id: np.ndarray, num_classes: int, epochs: int, learning_rate: float, config: TrainingConfig
) -> tuple[Classifier, list[float]]:
    """A classifier trained on these train images, and its mean loss of each epoch.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    device = evaluation_device(config.device)
    network = Classifier(*subject.encoder(), num_classes).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    steps_per_epoch = math.ceil(len(sample_id) / config.batch_size)
    _set_modes(network, config.batch_norm, steps_per_epoch)
    optimizer = _optimizer(network, learning_rate * config.batch_size / 256, config)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)
    losses: list[list[Tensor]] = [[] for _ in range(epochs)]
    num_seen, began = 0, time.monotonic()
    said = began
    with _seeded(config.seed, device):
        for images, labels in subject.training_views(sample_id, epochs, config.batch_size, config.seed):
            epoch = min(num_seen // len(sample_id), epochs - 1)
            num_seen += len(labels)
            if len(labels) < 2 and config.batch_norm == "train":
                continue  # batch statistics need two images
            losses[epoch].append(_step(network, optimizer, images, labels, subject, config.precision))
            schedule.step()
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                _check_finite(losses[epoch][-1], learning_rate)
                log.info("Epoch %d of %d, loss %.3f, %.0f s passed", epoch + 1, epochs, losses[epoch][-1].item(), said - began)
    by_epoch = [float(torch.stack(steps).mean()) for steps in losses if steps]
    if not by_epoch:
        raise UsageError(f"none of the {len(sample_id):,} train images can be decoded, or there is only one")
    _check_finite(torch.tensor(by_epoch[-1]), learning_rate)
    return network, by_epoch


def _step(
    network: Classifier, optimizer: torch.optim.Optimizer, images: np.ndarray, labels: np.ndarray, subject: Subject, precision: str
) -> Tensor:
    device = network.head.weight.device
    x = normalize(torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device), subject.pixel_mean, subject.pixel_std)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = network(x)
    loss = F.cross_entropy(logits.float(), torch.from_numpy(np.asarray(labels, np.int64)).to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _chosen_rate(
    subject: Subject, sample_id: np.ndarray, labels: np.ndarray, num_classes: int, epochs: int, config: TrainingConfig
) -> tuple[float, dict[str, Any]]:
    """The learning rate, and if several were tried, each one's score on held-out train images; of equally good ones the smallest."""
    if not isinstance(config.learning_rate, tuple):
        return config.learning_rate, {}
    aside = held_out(labels, config.validation_share, config.seed)
    rates = sorted(config.learning_rate)
    top1: list[float] = []
    for number, rate in enumerate(rates):
        log.info("Learning rate %g, %d of %d, with %d train images held out", rate, number + 1, len(rates), aside.sum())
        try:
            network, _ = train_classifier(subject, sample_id[~aside], num_classes, epochs, rate, config)
        except DivergedError:
            top1.append(0.0)
            continue
        top1.append(float(np.mean(_predicted(network, subject, sample_id[aside]) == labels[aside])))
    return rates[int(np.argmax(top1))], {"learning_rates": rates, "validation_top1": top1, "num_held_out": int(aside.sum())}


def _predicted(network: Classifier, subject: Subject, sample_id: np.ndarray) -> np.ndarray:
    """(N,) int64: the predicted classes of these train images, preprocessed like test images."""
    device = network.head.weight.device
    predicted = []
    with evaluation_mode(network):
        for start in range(0, len(sample_id), _PREDICTED_AT_ONCE):
            images = subject.images("train", sample_id[start : start + _PREDICTED_AT_ONCE])
            predicted.append(features_of(network, images, subject.pixel_mean, subject.pixel_std, device).argmax(1))
    return np.concatenate(predicted)


def _set_modes(network: Classifier, batch_norm: str, steps_per_epoch: int) -> None:
    """Set training mode, and batch normalization as configured."""
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train(batch_norm == "train")
            module.momentum = min(0.1, 10 / steps_per_epoch)


def _optimizer(network: Classifier, learning_rate: float, config: TrainingConfig) -> torch.optim.SGD:
    """SGD with groups for the encoder and the head; biases, scales and shifts are not decayed."""
    groups = []
    for part, factor in ((network.encoder, 1.0), (network.head, config.head_factor)):
        trainable = [parameter for parameter in part.parameters() if parameter.requires_grad]
        groups += [group | {"lr": learning_rate * factor} for group in decay_groups(trainable, config.weight_decay)]
    return torch.optim.SGD(groups, learning_rate, config.sgd_momentum, nesterov=config.sgd_momentum > 0)


def _check_finite(loss: Tensor, learning_rate: float) -> None:
    if not torch.isfinite(loss):
        raise DivergedError(f"the loss is no longer finite at a learning rate of {learning_rate:g}; give a smaller one")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block torch's global generator, which dropout draws from, is seeded; afterward its state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
