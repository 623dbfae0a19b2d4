"""Multinomial logistic regression on frozen features, shared by the protocols that fit a linear probe.

The objective is the mean cross-entropy + l2 / 2 times the squared weights. It is minimized by L-BFGS as in scikit-learn (SciPy's L-BFGS-B
with the same options), whose own form holds scores of all rows for all classes: here a pass over the rows takes a chunk at a time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.evaluation.rows import CHUNK_BYTES, Rows, as_rows, pieces, rows_of

TOLERANCE = 1e-6
"""Of the gradient's largest entry, where L-BFGS stops; scikit-learn's own 1e-4 leaves weights that differ in the second digit."""

_FALL = 1e-9
"""Relative fall of the objective at which L-BFGS stops too; below it, passes in float32 change scores by chance only."""

Fit = tuple[np.ndarray, np.ndarray, int]
"""Weights (C, F) float32, biases (C,) float32, and the number of iterations."""


def fit_lbfgs(
    x: Rows | np.ndarray, labels: np.ndarray, l2: float, max_iterations: int, *, tolerance: float = TOLERANCE, start: Fit | None = None
) -> Fit:
    """The minimum of the objective on x (N, F), labels (N,). A class without rows has the bias -inf.

    Args:
        start: Where the search begins, such as the minimum for another penalty on the same rows; not given: at zero.
    """
    from scipy.optimize import minimize  # slow to import, and most processes of a run fit nothing

    rows = as_rows(x)
    classes, targets = np.unique(labels, return_inverse=True)
    objective = _Objective(rows, targets, len(classes), l2)
    begin = np.zeros((len(classes), rows.width + 1))
    if start is not None:
        begin[:, :-1], begin[:, -1] = start[0][classes], start[1][classes]
    options = {"maxiter": max_iterations, "maxls": 50, "gtol": tolerance, "ftol": _FALL}
    found = minimize(objective, begin.ravel(), method="L-BFGS-B", jac=True, options=options)
    solution = found.x.reshape(begin.shape)
    num_classes = int(labels.max()) + 1
    weight, bias = np.zeros((num_classes, rows.width), np.float32), np.full(num_classes, -np.inf, np.float32)
    weight[classes], bias[classes] = solution[:, :-1], solution[:, -1]
    return weight, bias, min(int(found.nit), max_iterations)


class _Objective:
    """The objective and its gradient as a function of weights and biases (C * (F + 1),), in one pass over the rows."""

    def __init__(self, rows: Rows, targets: np.ndarray, num_classes: int, l2: float) -> None:
        self._rows, self._targets, self._num_classes, self._l2 = rows, torch.from_numpy(targets), num_classes, l2

    @torch.inference_mode()
    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(self._num_classes, -1)
        weight, bias = (torch.from_numpy(part.astype(np.float32)) for part in (parameters[:, :-1], parameters[:, -1]))
        loss, begin = 0.0, 0
        gradient = torch.zeros(parameters.shape, dtype=torch.float64)
        for chunk in self._rows:
            targets = self._targets[begin : begin + len(chunk)]
            begin += len(chunk)
            for piece in pieces(len(chunk), rows_of(CHUNK_BYTES, self._num_classes)):
                loss += _add_gradient(torch.from_numpy(chunk[piece]), targets[piece], weight, bias, gradient)
        gradient /= len(self._targets)
        found = gradient.numpy()
        found[:, :-1] += self._l2 * parameters[:, :-1]
        penalty = self._l2 / 2 * math.fsum(np.square(parameters[:, :-1]).sum(1))
        return loss / len(self._targets) + penalty, found.ravel()


def _add_gradient(x: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> float:
    """Add the gradient of the summed cross-entropy of x (n, F), targets (n,); returns the sum."""
    log_shares = F.log_softmax(torch.addmm(bias, x, weight.T), dim=1)
    places = torch.arange(len(targets))
    loss = -log_shares[places, targets].sum(dtype=torch.float64).item()
    error = log_shares.exp_()
    error[places, targets] -= 1
    gradient[:, :-1] += error.T @ x
    gradient[:, -1] += error.sum(0, dtype=torch.float64)
    return loss
