"""Weighted k-nearest-neighbors classification: Wu, Xiong, Yu and Lin 2018 (arXiv 1805.01978), section 3.4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.evaluation import Evaluation, FeatureSubject
from ray_sassl.evaluation.geometry import nearest
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.rows import CHUNK_BYTES, pieces, rows_of
from ray_sassl.evaluation.scores import check_features, classification_scores, evaluation_device


class Config(ProtocolConfig):
    """Weighted kNN.

    Attributes:
        k: Neighbors that vote (section 4.1: 200). In a smaller train set all images vote; the result's details contain the number.
        temperature: A neighbor's vote is exp(cosine similarity / temperature); 0.07 in the paper, 0.1 in most later code.
        device: Where to compute; "auto" is the GPU if there is one.
    """

    k: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.1, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def build(self) -> WeightedKNN:
        return WeightedKNN(self)


class WeightedKNN(Protocol):
    """The class with the largest sum of votes of the k nearest train features by cosine similarity."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: FeatureSubject) -> Evaluation:
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test)
        device = evaluation_device(self.config.device)
        k = min(self.config.k, len(train.labels))
        votes = knn_votes(train.features, train.labels, test.features, k, self.config.temperature, device)
        scores, predictions = classification_scores(votes, test)
        return Evaluation(scores, details={"k": k}, predictions=predictions)


@torch.inference_mode()
def knn_votes(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, k: int, temperature: float, device: torch.device
) -> Iterator[Tensor]:
    """Votes (m, C) of each class for the test features (M, F), in blocks, by the k nearest of the train features (N, F) with labels (N,).

    Each row's largest vote counts 1, which leaves the order of the classes as it is and cannot overflow.
    """
    num_classes = int(train_labels.max()) + 1
    similarity, places = nearest(test_features, train_features, k, device)
    labels = torch.from_numpy(train_labels).to(device)
    for block in pieces(len(similarity), rows_of(CHUNK_BYTES, num_classes)):
        weight = ((similarity[block] - similarity[block, :1]) / temperature).exp()
        yield weight.new_zeros(len(weight), num_classes).scatter_add_(1, labels[places[block]], weight)
