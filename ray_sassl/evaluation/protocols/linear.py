"""Linear probe: multinomial logistic regression on frozen features, standardized by the train set's mean and deviation.

The objective of both solvers is the mean cross-entropy + l2 / 2 times the squared weights. With `l2=grid` the penalty is chosen as in
Kornblith, Shlens and Le 2019 ("Do better ImageNet models transfer better?", arXiv 1805.08974, appendix): L-BFGS over 45 values from 1e-6 to
1e5, evenly spaced in the logarithm; the one that does best on held-out train images is fitted again on all of them. SimCLR, BYOL and SASSL
follow it. With `solver=sgd augment=true` the classifier is trained on random crops, mirrored half of the time, new in every epoch, through
the frozen encoder with its batch statistics fixed, as on ImageNet in MoCo, SimCLR and BYOL (Grill et al. 2020, arXiv 2006.07733, appendix
C.1: 80 epochs of Nesterov SGD, batch 1,024, no penalty, five learning rates tried on held-out train images, a center crop for testing).
Differs from the papers: features are standardized, which they do not mention, so that learning rates are comparable between encoders. Part
of the train set replaces a validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from ray_sassl.evaluation import Evaluation, FeatureSubject, LabeledFeatures, Score, Subject
from ray_sassl.evaluation.figures import curves
from ray_sassl.evaluation.linear_sgd import fit_sgd, fixed_rows, new_crops, steps_of
from ray_sassl.evaluation.logistic import fit_lbfgs
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.rows import CHUNK_BYTES, Rows, moments, pieces, rows_of
from ray_sassl.evaluation.scores import check_features, classification_scores, evaluation_device, top1_accuracy
from ray_sassl.evaluation.splits import held_out
from ray_sassl.process.errors import UsageError
from ray_sassl.views.recipes import PositiveInterval

SGD_ONLY = ("augment", "epochs", "batch_size", "learning_rate", "sgd_momentum", "device")
LBFGS_ONLY = ("max_iterations",)
_PATH_TOLERANCE = 1e-5
"""Tolerance of L-BFGS along the grid; see `logistic.TOLERANCE`."""
GRID_ONLY = ("l2_range", "num_l2")

PositiveNumber = Annotated[float, Field(gt=0)]


class Config(ProtocolConfig):
    """Linear probe.

    Attributes:
        solver: "lbfgs" is exact and fast for up to about 100,000 images and 1,000 features; "sgd" is for more.
        l2: Weight of the penalty on the squared weights (not the biases), or "grid" to choose it on held-out train images (L-BFGS only).
        l2_range: Smallest and largest value of the grid.
        num_l2: Number of values of the grid.
        validation_share: Share of each class's train images that is held out to choose the penalty or the learning rate; our choice.
        augment: Whether SGD uses new crops of the train images in every epoch, which pass through the encoder, or features of center crops.
        max_iterations: Maximum number of iterations of L-BFGS.
        epochs: Epochs of SGD, with a cosine schedule to 0.
        batch_size: Batch size of SGD.
        learning_rate: Learning rate of SGD for rows of unit length: it is divided by the number of features, the squared length of
            standardized rows. If it is a list, the best rate on held-out train images is used to fit all of them.
        sgd_momentum: Nesterov momentum of SGD.
        seed: Seed of SGD's order of the images, and of the choice of held-out images.
        device: Where SGD computes; "auto" is the GPU if there is one. L-BFGS computes on the CPU.
    """

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    l2: Annotated[float, Field(ge=0)] | Literal["grid"] = 1e-4
    l2_range: PositiveInterval = (1e-6, 1e5)
    num_l2: int = Field(default=45, ge=2)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    max_iterations: int = Field(default=500, ge=1)
    augment: bool = False
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: PositiveNumber | Annotated[tuple[PositiveNumber, ...], Field(min_length=1)] = 1.0
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        for name in SGD_ONLY if self.solver == "lbfgs" else LBFGS_ONLY:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with solver={self.solver!r}")
        if self.solver == "sgd" and self.l2 == "grid":
            raise ValueError("l2='grid' is for solver='lbfgs'; give SGD a number")
        for name in () if self.l2 == "grid" else GRID_ONLY:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without l2='grid'")
        chooses = self.l2 == "grid" or isinstance(self.learning_rate, tuple)
        if not chooses and self.validation_share != type(self).model_fields["validation_share"].default:
            raise ValueError("validation_share has no effect with one l2 and one learning_rate: nothing is chosen")
        if self.solver == "lbfgs" and self.l2 != "grid" and self.seed != 0:
            raise ValueError("seed has no effect with solver='lbfgs' and a given l2: nothing is drawn")
        return self

    def build(self) -> LinearProbe:
        return LinearProbe(self)


class LinearProbe(Protocol):
    """Top-1 and top-5 of a linear classifier; `train_top1` shows how far it overfits."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: FeatureSubject) -> Evaluation:
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test, "a linear probe")
        found = moments(train.features)
        x_train, x_test = (Rows(part.features, found) for part in (train, test))
        if self.config.solver == "sgd":
            weight, bias, figures, details = self._by_sgd(subject, train, x_train, found)
        else:
            weight, bias, figures, details = self._by_lbfgs(x_train, train.labels)
        scores, predictions = classification_scores(class_scores(x_test, weight, bias), test)
        train_top1 = top1_accuracy(class_scores(x_train, weight, bias), train.labels)
        return Evaluation({**scores, "train_top1": Score(train_top1, is_share=True)}, figures, details, predictions)

    def _by_lbfgs(self, x: Rows, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, bytes], dict[str, Any]]:
        """Weights, biases, figures and details."""
        config, l2 = self.config, self.config.l2
        figures: dict[str, bytes] = {}
        details: dict[str, Any] = {}
        if l2 == "grid":
            l2, grid, top1 = self._choose_l2(x, labels)
            figures["l2"] = curves(grid, {"": top1}, "l2", "top-1 on held-out train images", is_log=True, mark=l2)
            details = {"l2_grid": grid, "validation_top1": top1}
        weight, bias, num_iterations = fit_lbfgs(x, labels, l2, config.max_iterations)
        return (
            weight,
            bias,
            figures,
            details | {"l2": l2, "iterations": num_iterations, "converged": num_iterations < config.max_iterations},
        )

    def _by_sgd(
        self, subject: FeatureSubject, train: LabeledFeatures, x: Rows, moments: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, bytes], dict[str, Any]]:
        """Weights, biases, figures and details with the best of several learning rates, or the smallest of equally good ones."""
        config = self.config
        if not isinstance(config.learning_rate, tuple):
            ((weight, bias),) = self._fit_sgd(subject, train.sample_id, train.labels, x, moments, [config.learning_rate])
            return weight, bias, {}, {}
        aside = held_out(train.labels, config.validation_share, config.seed)
        rates = sorted(config.learning_rate)
        fits = self._fit_sgd(subject, train.sample_id[~aside], train.labels[~aside], x.part(~aside), moments, rates)
        held = x.part(aside)
        top1 = [top1_accuracy(class_scores(held, weight, bias), train.labels[aside]) for weight, bias in fits]
        rate = rates[int(np.argmax(top1))]
        ((weight, bias),) = self._fit_sgd(subject, train.sample_id, train.labels, x, moments, [rate])
        title = "top-1 on held-out train images"
        figures = {"learning_rate": curves(rates, {"": top1}, "learning rate", title, is_log=True, mark=rate)} if len(rates) > 1 else {}
        return (
            weight,
            bias,
            figures,
            {"learning_rates": rates, "validation_top1": top1, "learning_rate": rate, "num_held_out": int(aside.sum())},
        )

    def _fit_sgd(
        self,
        subject: FeatureSubject,
        sample_id: np.ndarray,
        labels: np.ndarray,
        x: Rows,
        moments: tuple[np.ndarray, np.ndarray],
        rates: list[float],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights and biases of each learning rate, fitted on train images of these ids and labels (n,), whose standardized features are
        `x`."""
        config, device = self.config, evaluation_device(self.config.device)
        assert config.l2 != "grid"
        options = (config.epochs, config.batch_size, config.seed, device)
        if config.augment:
            if not isinstance(subject, Subject):
                raise UsageError("augment=true needs the images and the encoder, and only features are here")
            batches = new_crops(subject, sample_id, moments, *options)
        else:
            batches = fixed_rows(x, labels, *options)
        num_steps = steps_of(len(x), config.epochs, config.batch_size)
        num_classes = int(labels.max()) + 1
        return fit_sgd(batches, num_steps, x.width, num_classes, rates, config.l2, config.sgd_momentum, device)

    def _choose_l2(self, x: Rows, labels: np.ndarray) -> tuple[float, list[float], list[float]]:
        """The l2 that does best on held-out images (of several the largest), the grid from large to small, and the top-1 of each value."""
        config = self.config
        aside = held_out(labels, config.validation_share, config.seed)
        grid = np.geomspace(config.l2_range[1], config.l2_range[0], config.num_l2).tolist()
        fitted, held = x.part(~aside), x.part(aside)
        top1: list[float] = []
        fit = None
        for l2 in grid:  # each fit starts where the one before ended
            fit = fit_lbfgs(fitted, labels[~aside], l2, config.max_iterations, tolerance=_PATH_TOLERANCE, start=fit)
            top1.append(top1_accuracy(class_scores(held, fit[0], fit[1]), labels[aside]))
        return grid[int(np.argmax(top1))], grid, top1


def class_scores(x: Rows, weight: np.ndarray, bias: np.ndarray) -> Iterator[torch.Tensor]:
    """Scores (n, C) of each class by a linear classifier, (C, F) and (C,), in blocks."""
    columns, added = torch.from_numpy(weight).T, torch.from_numpy(bias)
    for chunk in x:
        for piece in pieces(len(chunk), rows_of(CHUNK_BYTES, len(bias))):
            yield torch.addmm(added, torch.from_numpy(chunk[piece]), columns)
