"""Multinomial logistic regression on frozen features, shared by the protocols that fit a linear probe."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

TOLERANCE = 1e-6
"""L-BFGS stops when the gradient's largest entry is this small; with scikit-learn's own 1e-4, weights differ in the second digit."""


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (F,) of each feature; a constant feature gets deviation 1, so that it becomes 0."""
    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    return mean, np.where(deviation > 1e-6 * np.abs(mean) + 1e-12, deviation, 1.0)


def fit_lbfgs(x: np.ndarray, labels: np.ndarray, l2: float, max_iterations: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights (C, F) and biases (C,) that minimize the objective on x (N, F), labels (N,), by scikit-learn's L-BFGS; and its iterations."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and most processes of a run fit nothing

    model = LogisticRegression(C=inverse_penalty(l2, labels), max_iter=max_iterations, tol=TOLERANCE)
    with unconverged_is_fine():
        model.fit(x, labels)
    num_classes = int(labels.max()) + 1
    weight, bias = np.zeros((num_classes, x.shape[1]), np.float32), np.full(num_classes, -np.inf, np.float32)
    if len(model.classes_) == 2:  # scikit-learn keeps one row, the log-odds of the second class
        weight[model.classes_], bias[model.classes_] = np.vstack([0 * model.coef_, model.coef_]), np.append(0, model.intercept_)
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias, int(np.max(model.n_iter_))


def inverse_penalty(l2: float, labels: np.ndarray) -> float:
    """scikit-learn's `C` on labels (N,).

    With two classes scikit-learn penalizes one row of weights, the difference of our two, which counts twice as much.
    """
    if l2 <= 0:
        return np.inf
    return (2 if len(np.unique(labels)) == 2 else 1) / (l2 * len(labels))


@contextmanager
def unconverged_is_fine() -> Iterator[None]:
    """Silences scikit-learn's warning about unconverged fits; the details of the result report them."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
