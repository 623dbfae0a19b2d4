import cmath
import math

import pytest
import torch
from torch import Tensor, nn

from ray_sassl.methods import lejepa
from ray_sassl.methods.lejepa import epps_pulley, prediction_loss, sigreg_loss

FINE = torch.linspace(0, 9, 181, dtype=torch.float64)


def _samples(num: int = 9, width: int = 3) -> Tensor:
    return torch.randn(num, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _statistic_by_loops(samples: list[float], largest: float, num: int) -> float:
    """N * integral over [-largest, largest] of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), with complex numbers, one t at a time."""
    step = largest / (num - 1)
    total = 0.0
    for place in range(-num + 1, num):
        t = place * step
        phi = sum(cmath.exp(1j * t * x) for x in samples) / len(samples)
        value = abs(phi - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)
        total += step * value * (0.5 if abs(place) == num - 1 else 1)
    return len(samples) * total


def test_the_statistic_equals_its_definition():
    x = 1.7 * _samples() + 0.4
    found = epps_pulley(x, torch.linspace(0, 3, 17, dtype=torch.float64))
    assert found.tolist() == pytest.approx([_statistic_by_loops(column, 3, 17) for column in x.T.tolist()], abs=1e-12)


def test_the_statistic_equals_its_closed_form_where_the_points_are_fine():
    """The three integrals of the square are Gaussian: sqrt(2 pi) exp(-d^2 / 2), sqrt(pi) exp(-x^2 / 4) and sqrt(2 pi / 3)."""
    x = _samples()
    n = len(x)
    pairs = torch.exp(-((x[:, None] - x) ** 2) / 2).sum((0, 1)) / n
    expected = math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * torch.exp(-(x**2) / 4).sum(0) + n * math.sqrt(2 * math.pi / 3)
    torch.testing.assert_close(epps_pulley(x, FINE), expected, rtol=0, atol=1e-12)


def test_the_statistic_knows_neither_the_order_nor_the_sign_of_samples_and_is_small_for_normal_ones():
    x = _samples(4000, 1)
    torch.testing.assert_close(epps_pulley(-x.flip(0), FINE), epps_pulley(x, FINE), rtol=0, atol=1e-9)
    assert epps_pulley(x, FINE) < 3 < epps_pulley(1.2 * x, FINE) < epps_pulley(1.5 * x, FINE)
    assert epps_pulley(x + 0.2, FINE) > 10


def test_sigreg_is_the_mean_over_directions_of_any_length():
    z, directions = _samples(8, 5), _samples(5, 4)
    points = torch.linspace(0, 3, 17, dtype=torch.float64)
    expected = []
    for column in directions.T.tolist():
        length = math.sqrt(sum(value**2 for value in column))
        expected.append(_statistic_by_loops([sum(a * b for a, b in zip(row, column, strict=True)) / length for row in z.tolist()], 3, 17))
    assert sigreg_loss(z, 3 * directions, points).item() == pytest.approx(sum(expected) / 4, abs=1e-12)


def test_the_prediction_is_the_distance_from_the_mean_of_the_large_views():
    z = torch.stack([_samples(4), _samples(4) + 1, _samples(4) - 2])
    center = [[(a + b) / 2 for a, b in zip(x, y, strict=True)] for x, y in zip(*z[:2].tolist(), strict=True)]
    total = sum((v - c) ** 2 for view in z.tolist() for row, mean in zip(view, center, strict=True) for v, c in zip(row, mean, strict=True))
    assert prediction_loss(z).item() == pytest.approx(total / z.numel(), abs=1e-12)


def test_gradients_equal_finite_differences():
    z, directions, points = _samples(5, 3), _samples(3, 4), torch.linspace(0, 3, 17, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sigreg_loss(x, directions, points), z.requires_grad_())


def test_the_method_weighs_both_terms_and_its_chance_value_is_that_of_embeddings_of_zero():
    config = lejepa.Config(sigreg_weight=0.3, num_slices=6, projector_hidden_size=8, embedding_size=4)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = config.build(backbone, 6).double()
    views = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(2)] + [torch.randn(6, 3, 5, 5, dtype=torch.float64)]
    output = method(views, torch.Generator().manual_seed(5))
    terms = output.metrics
    torch.testing.assert_close(output.loss.detach(), 0.3 * terms["sigreg"] + 0.7 * terms["prediction"], rtol=0, atol=1e-12)
    assert torch.equal(output.loss, method(views, torch.Generator().manual_seed(5)).loss)
    assert not torch.equal(output.loss, method(views, torch.Generator().manual_seed(6)).loss)
    last = method.projector[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    assert method(views, torch.Generator()).loss.item() == pytest.approx(output.chance_loss, abs=1e-9)


def test_the_defaults_are_those_of_the_official_minimal_example():
    config = lejepa.Config()
    assert (config.sigreg_weight, config.num_slices, config.num_frequencies, config.max_frequency) == (0.02, 256, 17, 3)
    assert (config.projector_layers, config.projector_hidden_size, config.embedding_size) == (3, 2048, 128)
