import math

import pytest
import torch
from torch import Tensor, nn

from ray_sassl.methods import vicreg
from ray_sassl.methods.vicreg import vicreg_terms

EPSILON = 1e-4


def _pair(batch_size: int = 7, size: int = 4) -> Tensor:
    return torch.randn(2, batch_size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _terms_by_loops(z1: Tensor, z2: Tensor) -> tuple[float, float, float]:
    """Equations 1 to 5 of Bardes et al. 2022 with the scales of their code, one scalar at a time."""
    batch_size, size = z1.shape
    invariance = sum((x - y) ** 2 for a, b in zip(z1.tolist(), z2.tolist(), strict=True) for x, y in zip(a, b, strict=True))
    variance = covariance = 0.0
    for z in (z1, z2):
        columns = [[value - sum(column) / batch_size for value in column] for column in z.T.tolist()]
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                entry = sum(x * y for x, y in zip(a, b, strict=True)) / (batch_size - 1)
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(entry + EPSILON)) / size / 2
                else:
                    covariance += entry**2 / size
    return invariance / (batch_size * size), variance, covariance


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_terms_equal_the_equations(scale):
    z1, z2 = scale * _pair()
    for term, expected in zip(vicreg_terms(z1, z2), _terms_by_loops(z1, z2), strict=True):
        assert term.item() == pytest.approx(expected, abs=1e-9)


def test_the_terms_know_neither_the_order_of_views_nor_of_images_nor_a_common_shift():
    z1, z2 = _pair()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    for a, b in [(z2, z1), (z1[order], z2[order]), (z1 + 3, z2 + 3)]:
        for term, expected in zip(vicreg_terms(a, b), vicreg_terms(z1, z2), strict=True):
            torch.testing.assert_close(term, expected, rtol=0, atol=1e-12)


def test_the_terms_of_embeddings_that_say_one_thing_twice():
    column = torch.tensor([0.3, -0.3], dtype=torch.float64)
    z = torch.stack([column, column], dim=1)  # variance 0.18 = covariance
    invariance, variance, covariance = vicreg_terms(z, z + 1)
    assert invariance.item() == pytest.approx(1, abs=1e-12)
    assert variance.item() == pytest.approx(1 - math.sqrt(0.18 + EPSILON), abs=1e-12)
    assert covariance.item() == pytest.approx(2 * 0.18**2, abs=1e-12)


def test_dimensions_that_vary_enough_and_apart_cost_nothing():
    z = 2 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert [term.item() for term in vicreg_terms(z, z)] == [0, 0, 0]


def test_the_gradients_of_the_terms_equal_finite_differences():
    z1, z2 = 0.5 * _pair(5, 3)
    assert torch.autograd.gradcheck(vicreg_terms, (z1.requires_grad_(), z2.requires_grad_()), atol=1e-7)


def test_the_method_weighs_the_terms_and_its_chance_value_is_that_of_constant_embeddings():
    config = vicreg.Config(invariance_weight=3, variance_weight=5, covariance_weight=7, projector_hidden_size=8, embedding_size=4)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = config.build(backbone, 6).double()
    views = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    invariance, variance, covariance = vicreg_terms(*(method.projector(method.backbone(view)) for view in views))
    output = method(views, torch.Generator())
    torch.testing.assert_close(output.loss, 3 * invariance + 5 * variance + 7 * covariance, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.stack([*output.metrics.values()]), torch.stack([invariance, variance, covariance]).detach())
    output = method([torch.ones(6, 3, 8, 8, dtype=torch.float64)] * 2, torch.Generator())
    assert output.loss.item() == pytest.approx(output.chance_loss, abs=1e-9)
    assert output.chance_loss == pytest.approx(5 * 0.99)


def test_the_default_weights_are_the_papers():
    config = vicreg.Config()
    assert (config.invariance_weight, config.variance_weight, config.covariance_weight) == (25, 25, 1)
