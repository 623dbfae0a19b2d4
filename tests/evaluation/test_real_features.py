"""Real images through a fixed random encoder: what its features score equals scikit-learn's, and repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation import FixedFeatures, LabeledFeatures
from ray_sassl.evaluation.extraction import ExtractionJob, Extractor, Preprocessing
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.views.center_crop import EvaluationView

pytestmark = pytest.mark.slow

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GROUPS = {"train": [0, 1, 2, 3], "test": [0, 1]}
"""Row groups of 1,000 images of the first shards."""


@pytest.fixture(scope="module")
def features(shared_dir: Path) -> dict[str, LabeledFeatures]:
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name="resnet20"))[0]
    found = {}
    for split, groups in GROUPS.items():
        index = build_index(DataConfig(path=str(shared_dir / f"data/cifar10/{split}-00000.parquet")))
        extractor = Extractor(
            ExtractionJob(encoder, index, Preprocessing(EvaluationView(32), MEAN, STD)), torch.device("cpu"), num_threads=1
        )
        found[split] = extractor.portion(groups).parts[0]
    return found


def _predicted(features: dict[str, LabeledFeatures], config: Any) -> np.ndarray:
    predictions = config.build().evaluate(FixedFeatures(features["train"], features["test"])).predictions
    assert predictions is not None
    return predictions.predicted


def _float64(features: dict[str, LabeledFeatures]) -> tuple[np.ndarray, np.ndarray]:
    return features["train"].features.astype(np.float64), features["test"].features.astype(np.float64)


def test_neighbors_vote_as_scikit_learns_do(features):
    train, test = _float64(features)
    votes: Any = lambda distance: np.exp((1 - distance) / 0.1)
    reference = KNeighborsClassifier(200, metric="cosine", algorithm="brute", weights=votes)
    expected = reference.fit(train, features["train"].labels).predict(test)
    found = _predicted(features, Knn())
    assert (found == expected).mean() >= 0.999  # votes that are equal but for rounding may go either way
    assert (found == features["test"].labels).mean() > 0.2


def test_the_linear_probe_chooses_as_scikit_learns_logistic_regression(features):
    train, test = _float64(features)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=1 / (1e-2 * len(train)), tol=1e-9, max_iter=5000)
    expected = reference.fit(scaler.transform(train), features["train"].labels).predict(scaler.transform(test))
    found = _predicted(features, Linear(l2=1e-2, max_iterations=5000))
    assert (found == expected).mean() >= 0.999
    assert (found == features["test"].labels).mean() > 0.25
