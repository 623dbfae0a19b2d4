"""Few-shot classification on frozen features: a classifier fitted on a few images of each class, over many random draws of them.

`ridge` is regularized least squares onto targets of -1 and 1 in closed form (Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.1).
`centroid` is the nearest class mean after centering and scaling to unit length (Wang, Chao, Weinberger and van der Maaten 2019,
"SimpleShot", arXiv 1911.04623, section 3: CL2N). Both use features that are centered by the mean of all train features, which needs no
labels, and scaled to unit length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field

from ray_sassl.evaluation import Evaluation, FeatureSubject
from ray_sassl.evaluation.intervals import score_over_draws
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.rows import CHUNK_BYTES, KEPT_BYTES, chunks, mean_of, pieces, release, rows_of
from ray_sassl.evaluation.scores import chance_of, check_features, top1_accuracy
from ray_sassl.evaluation.splits import n_of_each


class Config(ProtocolConfig):
    """Few-shot classification.

    Attributes:
        shots: Train images of each class, one entry per setting; 1 and 10 in the SASSL paper.
        num_draws: Number of random draws; the interval is that of the mean over draws.
        classifier: The classifier to fit.
        l2: Weight of the penalty of `ridge`, for the sum of squared errors; our choice, the papers choose it for each data set.
        seed: Seed of the draws.
    """

    shots: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10)
    num_draws: int = Field(default=50, ge=1)
    classifier: Literal["ridge", "centroid"] = "ridge"
    l2: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @classmethod
    def tiny(cls) -> Self:
        return cls(num_draws=10, shots=(5,))

    def build(self) -> FewShot:
        return FewShot(self)


class FewShot(Protocol):
    """Mean top-1 over draws, for each number of shots: `1_shot_top1`, `5_shot_top1`, ..."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: FeatureSubject) -> Evaluation:
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test, "few-shot classification")
        mean = mean_of(train.features)
        fit = fit_ridge if self.config.classifier == "ridge" else fit_centroids
        # What is computed anew for each draw is small beside the draw's own fit.
        kept = centered_to_unit_length(test.features, mean) if len(test.labels) <= rows_of(KEPT_BYTES, len(mean)) else None

        def x_test() -> Iterator[np.ndarray]:
            if kept is not None:
                yield from (kept[piece] for piece in pieces(len(kept), rows_of(CHUNK_BYTES, len(mean))))
                return
            yield from (centered_to_unit_length(chunk, mean) for chunk in chunks(test.features))

        scores, details = {}, {}
        for shots in self.config.shots:
            top1 = []
            for draw in range(self.config.num_draws):
                rows = n_of_each(train.labels, shots, np.random.default_rng([self.config.seed, shots, draw]))
                x_train = centered_to_unit_length(train.features[rows], mean)
                release(train.features)
                weight, bias = fit(x_train, train.labels[rows], self.config.l2)
                class_scores = (torch.from_numpy(x @ weight.T + bias) for x in x_test())
                top1.append(top1_accuracy(class_scores, test.labels))
            scores[f"{shots}_shot_top1"] = score_over_draws(top1).as_share(chance_of(test.labels))
            details[f"{shots}_shot"] = {
                "top1_by_draw": top1,
                "deviation_over_draws": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
            }
        return Evaluation(scores, details=details)


def centered_to_unit_length(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features (n, F) minus the train set's mean (F,), divided by their length."""
    x = (features - mean).astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def fit_ridge(x: np.ndarray, labels: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, F) and biases (C,) of least squares onto -1 and 1, from x (N, F) and labels (N,).

    A class without images is never predicted.
    """
    from sklearn.linear_model import Ridge  # slow to import

    classes, places = np.unique(labels, return_inverse=True)
    targets = 2.0 * np.eye(len(classes))[places] - 1
    model = Ridge(alpha=l2).fit(x.astype(np.float64), targets)
    return _by_label(classes, model.coef_.reshape(len(classes), -1), model.intercept_)


def fit_centroids(x: np.ndarray, labels: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """The nearest class mean as a linear classifier: |x - m|^2 is smallest where m . x - |m|^2 / 2 is largest. `l2` is unused."""
    classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.eye(len(classes))[places].T @ x.astype(np.float64) / counts[:, None]
    return _by_label(classes, means, -0.5 * (means**2).sum(1))


def _by_label(classes: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    num_classes = int(classes.max()) + 1
    whole_weight, whole_bias = np.zeros((num_classes, weight.shape[1]), np.float32), np.full(num_classes, -np.inf, np.float32)
    whole_weight[classes], whole_bias[classes] = weight, bias
    return whole_weight, whole_bias
