import math

import pytest
import torch
from torch import Tensor, nn

from ray_sassl.methods import barlow_twins
from ray_sassl.methods.barlow_twins import barlow_twins_loss, cross_correlation

EPSILON = 1e-5


def _pair(batch_size: int = 7, size: int = 4) -> Tensor:
    return torch.randn(2, batch_size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _orthogonal() -> Tensor:
    """Eight images whose four dimensions are +1 or -1, uncorrelated and with mean 0."""
    signs = [[1, -1][bit >> row & 1] for bit in range(8) for row in range(3)]
    x = torch.tensor(signs, dtype=torch.float64).view(8, 3)
    return torch.cat([x, x.prod(1, keepdim=True)], dim=1)


def _loss_by_loops(z1: Tensor, z2: Tensor, off_diagonal_weight: float) -> float:
    """Equations 1 and 2 of Zbontar et al. 2021, one scalar at a time, on embeddings standardized as by batch normalization."""

    def columns(z: Tensor) -> list[list[float]]:
        standardized = []
        for column in z.T.tolist():
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            standardized.append([(value - mean) / math.sqrt(variance + EPSILON) for value in column])
        return standardized

    loss = 0.0
    for i, a in enumerate(columns(z1)):
        for j, b in enumerate(columns(z2)):
            c = sum(x * y for x, y in zip(a, b, strict=True)) / len(z1)
            loss += (1 - c) ** 2 if i == j else off_diagonal_weight * c**2
    return loss


@pytest.mark.parametrize("off_diagonal_weight", [0.0051, 1.0])
def test_the_loss_equals_the_equations(off_diagonal_weight):
    z1, z2 = _pair()
    expected = _loss_by_loops(z1, z2, off_diagonal_weight)
    assert barlow_twins_loss(z1, z2, off_diagonal_weight).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_knows_neither_the_order_of_views_nor_of_images():
    z1, z2 = _pair()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    for a, b in [(z2, z1), (z1[order], z2[order])]:
        torch.testing.assert_close(barlow_twins_loss(a, b, 0.1), barlow_twins_loss(z1, z2, 0.1), rtol=0, atol=1e-12)


def test_the_loss_knows_neither_the_mean_nor_the_scale_of_a_dimension():
    z1, z2 = _pair()
    z1, z2 = 1000 * z1, 1000 * z2  # where what is added to variances does not show
    shifted = z1 * torch.tensor([2.0, 0.5, 1.0, 7.0]) + torch.tensor([5.0, 0.0, -300.0, 1.0])
    torch.testing.assert_close(barlow_twins_loss(shifted, z2, 0.1), barlow_twins_loss(z1, z2, 0.1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sign", "expected"), [(1, 4 * (EPSILON / (1 + EPSILON)) ** 2), (-1, 4 * (1 + 1 / (1 + EPSILON)) ** 2)])
def test_the_loss_of_equal_and_of_opposite_views_without_redundancy(sign, expected):
    z = _orthogonal()
    assert barlow_twins_loss(z, sign * z, 0.0051).item() == pytest.approx(expected, abs=1e-12)


def test_a_repeated_dimension_costs_its_weight_in_both_forms():
    z = _orthogonal()[:, [0, 0]]
    c = 1 / (1 + EPSILON)
    assert barlow_twins_loss(z, z, 0.3).item() == pytest.approx(2 * (1 - c) ** 2 + 0.3 * 2 * c**2, abs=1e-12)


def test_the_gradient_of_the_cross_correlation_equals_finite_differences():
    z1, z2 = _pair(5, 3)
    assert torch.autograd.gradcheck(cross_correlation, (z1.requires_grad_(), z2.requires_grad_()), atol=1e-7)


@pytest.mark.parametrize("loss_scale", [1.0, 0.024])
def test_the_method_scales_the_loss_and_its_chance_value_is_that_of_constant_embeddings(loss_scale):
    config = barlow_twins.Config(loss_scale=loss_scale, projector_hidden_size=8, embedding_size=4)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = config.build(backbone, 6).double()
    views = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    z1, z2 = (method.projector(method.backbone(view)) for view in views)
    torch.testing.assert_close(method(views, torch.Generator()).loss, loss_scale * barlow_twins_loss(z1, z2, 0.0051), rtol=0, atol=1e-9)
    constant = [torch.ones(6, 3, 8, 8, dtype=torch.float64)] * 2
    output = method(constant, torch.Generator())
    assert output.loss.item() == pytest.approx(output.chance_loss, abs=1e-9)
    assert output.chance_loss == loss_scale * 4
