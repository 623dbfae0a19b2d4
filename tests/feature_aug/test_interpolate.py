import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ray_sassl.feature_aug import extrapolate
from ray_sassl.feature_aug.interpolate import Config

BATCH_SIZE, WIDTH = 6, 5


def _embeddings(length: float | None = None) -> Tensor:
    z = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * (1 + torch.arange(BATCH_SIZE)[:, None]) if length is None else length * z / z.norm(dim=1, keepdim=True)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _nearest(z: Tensor) -> list[int]:
    unit = [row / row.square().sum().sqrt() for row in z]
    cosines = [[float((a * b).sum()) if a is not b else -2.0 for b in unit] for a in unit]
    return [row.index(max(row)) for row in cosines]


def test_the_feature_stands_at_lambda_on_the_way_to_the_partner():
    z = _embeddings()
    features = Config(choice="nearest", lambda_range=(0.3, 0.3)).build(WIDTH, 1)(z, _seeded())[0]
    for i, j in enumerate(_nearest(z)):
        partner = z[j] * z[i].square().sum().sqrt() / z[j].square().sum().sqrt()
        torch.testing.assert_close(features[i], 0.7 * z[i] + 0.3 * partner, rtol=0, atol=1e-6)


def test_embeddings_of_one_length_are_mixed_as_they_are():
    z = _embeddings(length=4)
    features = Config(choice="nearest", lambda_range=(0.5, 0.5)).build(WIDTH, 1)(z, _seeded())[0]
    torch.testing.assert_close(features, (z + z[_nearest(z)]) / 2, rtol=0, atol=1e-6)


def test_lambda_one_is_the_partner():
    z = _embeddings(length=1)
    features = Config(choice="nearest", lambda_range=(1, 1)).build(WIDTH, 1)(z, _seeded())[0]
    torch.testing.assert_close(features, z[_nearest(z)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [(1, 1), (0.4, 0.4), (2, 6)])
def test_lambda_has_the_moments_of_its_distribution(beta):
    config = Config(lambda_range=(0.2, 0.6), lambda_beta=beta)
    drawn = config.draw_lambda(5000, _embeddings(), _seeded()).flatten()
    a, b = beta
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert drawn.min() >= 0.2 - 1e-7  # float32
    assert drawn.max() <= 0.6 + 1e-7
    assert abs(drawn.mean().item() - (0.2 + 0.4 * mean)) < 5 * 0.4 * (variance / len(drawn)) ** 0.5
    assert abs(drawn.var().item() - 0.16 * variance) < 0.05 * 0.16 * variance


def test_lambda_differs_between_samples_and_features():
    assert Config().draw_lambda(4, _embeddings(), _seeded()).unique().numel() == 4 * BATCH_SIZE


def test_the_gradient_is_what_is_left_of_the_embedding():
    z = _embeddings().requires_grad_()
    Config(lambda_range=(0.3, 0.3)).build(WIDTH, 2)(z, _seeded()).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 2 * 0.7), rtol=0, atol=1e-6)


def test_extrapolation_is_its_mirror_image_about_the_embedding():
    z = _embeddings()
    toward, away = (c(lambda_range=(0.1, 0.9)).build(WIDTH, 3)(z, _seeded()) for c in (Config, extrapolate.Config))
    torch.testing.assert_close((toward + away) / 2, z.expand(3, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_an_interval_that_is_none_in_0_to_1_is_refused(interval):
    with pytest.raises(ValidationError, match="lambda_range"):
        Config(lambda_range=interval)
