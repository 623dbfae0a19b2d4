"""Figures of how features lie, against slow references and closed forms."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from ray_sassl.evaluation.geometry import alignment, nearest, principal_components, uniformity


def _rows(num: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def test_alignment_is_the_squared_distance_on_the_sphere():
    z1, z2 = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, -1.0]])
    assert alignment(z1, z2).tolist() == pytest.approx([0, 4, 2], abs=1e-6)


@pytest.mark.parametrize("rows_at_once", [3, 1024])
def test_uniformity_equals_the_equation_pair_by_pair(rows_at_once, monkeypatch):
    monkeypatch.setattr("ray_sassl.evaluation.geometry._ROWS_AT_ONCE", rows_at_once)
    z = _rows(20, 4)
    x = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    pairs = [math.exp(-2 * float(((a - b) ** 2).sum())) for i, a in enumerate(x) for b in x[:i]]
    assert uniformity(z) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-6)


def test_collapsed_features_are_not_uniform_at_all_and_random_ones_are():
    assert uniformity(torch.ones(50, 8)) == pytest.approx(0, abs=1e-6)
    assert uniformity(_rows(2000, 512)) == pytest.approx(-4, abs=0.05)


def test_neighbors_equal_those_of_scikit_learn():
    queries, bank = _rows(15, 6, 1), _rows(80, 6, 2)
    similarity, places = nearest(queries, bank, 5)
    distance, expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank.numpy()).kneighbors(queries.numpy())
    assert places.tolist() == expected.tolist()
    np.testing.assert_allclose(similarity.numpy(), 1 - distance, atol=1e-5)


def test_principal_components_equal_those_of_scikit_learn():
    z = _rows(60, 5) * torch.tensor([3.0, 1.0, 0.5, 2.0, 0.1])
    points, shares = principal_components(z, 2)
    model = PCA(2).fit(z.double().numpy())
    expected = model.transform(z.double().numpy())
    np.testing.assert_allclose(np.abs(points.numpy()), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(shares.numpy(), model.explained_variance_ratio_, atol=1e-10)
