import torch

from ray_sassl.feature_aug.noise import Config

BATCH_SIZE, WIDTH = 32, 8


def _embeddings() -> torch.Tensor:
    """Of a spread that differs from dimension to dimension; the last has none."""
    z = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 3 + z * torch.tensor([0.01, 0.1, 0.5, 1, 2, 5, 100, 0])


def _slow_std(z: torch.Tensor) -> torch.Tensor:
    columns = z.T.tolist()
    means = [sum(column) / len(column) for column in columns]
    return torch.tensor([(sum((x - m) ** 2 for x in c) / len(c)) ** 0.5 for c, m in zip(columns, means, strict=True)], dtype=torch.float64)


def test_noise_is_normal_in_units_of_each_dimensions_own_spread():
    z = _embeddings()
    features = Config(noise_std=0.3).build(WIDTH, 500)(z, torch.Generator().manual_seed(1))
    draws = ((features - z) / (0.3 * _slow_std(z)))[:, :, :-1].flatten(0, 1)  # (K B, D - 1)
    tolerance = 5 / len(draws) ** 0.5
    assert draws.mean(0).abs().max() < tolerance
    torch.testing.assert_close(draws.square().mean(0), torch.ones(WIDTH - 1).double(), rtol=0, atol=2 * tolerance)
    torch.testing.assert_close(draws.pow(4).mean(0), 3 * torch.ones(WIDTH - 1).double(), rtol=0, atol=20 * tolerance)


def test_a_dimension_without_spread_gets_no_noise():
    z = _embeddings()
    features = Config().build(WIDTH, 2)(z, torch.Generator().manual_seed(1))
    assert torch.equal(features[:, :, -1], z[:, -1].expand(2, -1))


def test_noise_grows_in_proportion_to_its_strength():
    z = _embeddings()
    weak, strong = (Config(noise_std=s).build(WIDTH, 2)(z, torch.Generator().manual_seed(1)) - z for s in (0.5, 1.5))
    torch.testing.assert_close(strong, 3 * weak, rtol=0, atol=1e-10)


def test_a_batch_of_one_sample_has_no_spread_and_stays_as_it_is():
    z = _embeddings()[:1]
    assert torch.equal(Config().build(WIDTH, 2)(z, torch.Generator()), z.expand(2, 1, WIDTH))


def test_gradients_reach_only_the_embeddings():
    z = _embeddings().requires_grad_()
    Config().build(WIDTH, 3)(z, torch.Generator().manual_seed(1)).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 3))
