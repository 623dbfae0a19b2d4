"""Linear probe: multinomial logistic regression on frozen features, standardised by the train set's mean and deviation.

The objective of both solvers is the mean cross-entropy + l2 / 2 times the squared weights. With `l2=grid` the penalty is chosen as in Kornblith,
Shlens and Le 2019 ("Do better ImageNet models transfer better?", arXiv 1805.08974, appendix): L-BFGS over 45 values from 1e-6 to 1e5, evenly
spaced in the logarithm; the one that does best on held-out train images is fitted again on all of them. SimCLR, BYOL and SASSL follow it.
Differs from the paper: features are standardised, which the paper does not speak of, and where a data set has no validation split of its own,
part of its train set stands in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.evaluate import Evaluation, Protocol, ProtocolConfig, Score, Subject
from ray_sassl.evaluate.figures import curves
from ray_sassl.evaluate.scores import check_features, classification_scores, evaluation_device, top_k_accuracy
from ray_sassl.evaluate.splits import held_out
from ray_sassl.plugins import UsageError
from ray_sassl.views.recipes import PositiveInterval

SGD_ONLY = ("epochs", "batch_size", "learning_rate", "sgd_momentum", "device")
LBFGS_ONLY = ("max_iterations",)
_TOLERANCE, _PATH_TOLERANCE = 1e-6, 1e-5
"""Of the gradient's largest entry, where L-BFGS stops; scikit-learn's own 1e-4 leaves weights that differ in the second digit."""
GRID_ONLY = ("l2_range", "num_l2", "validation_share")


class Config(ProtocolConfig):
    """Linear probe.

    Attributes:
        solver: "lbfgs" is exact and quick for up to about 100,000 images and 1,000 features; "sgd" is for more.
        l2: Weight of the penalty on the weights' squares (not the biases'), or "grid" to choose it on held-out train images (L-BFGS only).
        l2_range: Smallest and largest value of the grid.
        num_l2: Values of the grid.
        validation_share: Of each class's train images, for the choice; our choice.
        max_iterations: Of L-BFGS.
        epochs: Of SGD, with a cosine schedule to 0.
        batch_size: Of SGD.
        learning_rate: Of SGD, for rows of unit length: it is divided by the number of features, whose rows are that long when standardised.
        sgd_momentum: Of SGD, in Nesterov's form.
        seed: Of SGD's order of the images, and of the choice of held-out images.
        device: Where SGD computes; "auto" is the GPU where there is one. L-BFGS computes on the CPU.
    """

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    l2: Annotated[float, Field(ge=0)] | Literal["grid"] = 1e-4
    l2_range: PositiveInterval = (1e-6, 1e5)
    num_l2: int = Field(default=45, ge=2)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    max_iterations: int = Field(default=500, ge=1)
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1.0, gt=0)
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
        if self.solver == "lbfgs" and self.l2 != "grid" and self.seed != 0:
            raise ValueError("seed has no effect with solver='lbfgs' and a given l2: nothing is drawn")
        return self

    def build(self) -> LinearProbe:
        return LinearProbe(self)


class LinearProbe(Protocol):
    """Top-1 and top-5 of a linear classifier; `train_top1` beside them shows how far it overfits."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test)
        if len(np.unique(train.labels)) < 2:
            raise UsageError("a linear probe needs train images of at least two classes")
        mean, deviation = _moments(train.features)
        x_train, x_test = (((part.features - mean) / deviation).astype(np.float32) for part in (train, test))
        figures: dict[str, bytes] = {}
        details: dict[str, Any] = {}
        if self.config.solver == "sgd":
            weight, bias = fit_sgd(x_train, train.labels, self.config)
        else:
            l2 = self.config.l2
            if l2 == "grid":
                l2, grid, top1 = self._choose_l2(x_train, train.labels)
                figures["l2"] = curves(grid, {"": top1}, "l2", "top-1 on held-out train images", is_log=True, mark=l2)
                details = {"l2_grid": grid, "validation_top1": top1}
            weight, bias, num_iterations = fit_lbfgs(x_train, train.labels, l2, self.config.max_iterations)
            details |= {"l2": l2, "iterations": num_iterations, "converged": num_iterations < self.config.max_iterations}
        scores, predictions = classification_scores(torch.from_numpy(x_test @ weight.T + bias), test)
        train_accuracy = top_k_accuracy(torch.from_numpy(x_train @ weight.T + bias), torch.from_numpy(train.labels))
        return Evaluation({**scores, "train_top1": Score(train_accuracy["top1"])}, figures, details, predictions)

    def _choose_l2(self, x: np.ndarray, labels: np.ndarray) -> tuple[float, list[float], list[float]]:
        """The l2 that does best on held-out images (of several the largest), the grid from large to small, and the top-1 of each value."""
        config = self.config
        aside = held_out(labels, config.validation_share, config.seed)
        grid = np.geomspace(config.l2_range[1], config.l2_range[0], config.num_l2).tolist()
        top1: list[float] = []
        model = LogisticRegression(max_iter=config.max_iterations, tol=_PATH_TOLERANCE, warm_start=True)
        for l2 in grid:  # each fit starts where the one before ended
            model.set_params(C=1 / (l2 * int((~aside).sum())))
            with _quiet():
                model.fit(x[~aside], labels[~aside])
            top1.append(float(np.mean(model.predict(x[aside]) == labels[aside])))
        return grid[int(np.argmax(top1))], grid, top1


def fit_lbfgs(x: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights (C, F) and biases (C,) that minimise the objective on x (N, F), labels (N,), by scikit-learn's L-BFGS; and its iterations."""
    model = LogisticRegression(C=1 / (l2 * len(x)) if l2 > 0 else np.inf, max_iter=max_iterations, tol=_TOLERANCE)
    with _quiet():
        model.fit(x, labels)
    num_classes = int(labels.max()) + 1
    weight, bias = np.zeros((num_classes, x.shape[1]), np.float32), np.full(num_classes, -np.inf, np.float32)
    if len(model.classes_) == 2:  # scikit-learn keeps one row, the log-odds of the second class
        weight[model.classes_], bias[model.classes_] = np.vstack([0 * model.coef_, model.coef_]), np.append(0, model.intercept_)
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias, int(np.max(model.n_iter_))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without scikit-learn's warning of fits that were cut short; the result's details tell of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def fit_sgd(x: np.ndarray, labels: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, F) and biases (C,) after `config.epochs` epochs of SGD on x (N, F), labels (N,), from zero."""
    device = evaluation_device(config.device)
    features, targets = torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device)
    layer = nn.Linear(x.shape[1], int(labels.max()) + 1, device=device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert config.l2 != "grid"
    groups = [{"params": [layer.weight], "weight_decay": config.l2}, {"params": [layer.bias], "weight_decay": 0.0}]
    learning_rate = config.learning_rate / x.shape[1]
    optimizer = torch.optim.SGD(groups, learning_rate, config.sgd_momentum, nesterov=config.sgd_momentum > 0)
    num_steps = config.epochs * math.ceil(len(x) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(x), generator=generator).to(device).split(config.batch_size):
            _sgd_step(layer, optimizer, features[rows], targets[rows])
            schedule.step()
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def _sgd_step(layer: nn.Linear, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(layer(x), labels).backward()
    optimizer.step()


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) by feature; a constant feature has deviation 1, and so stays 0."""
    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    return mean, np.where(deviation > 1e-6 * np.abs(mean) + 1e-12, deviation, 1.0)
