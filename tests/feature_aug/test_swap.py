import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug.swap import Config

WIDTH = 400


def _embeddings() -> Tensor:
    """Two samples, each the other's only partner."""
    z = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * torch.tensor([[1.0], [5.0]])


def _partners(z: Tensor) -> Tensor:
    return F.normalize(z.flip(0), dim=1) * z.norm(dim=1, keepdim=True)


def _features(z: Tensor, num_samples: int, **fields) -> Tensor:
    return Config(**fields).build(WIDTH, num_samples)(z, torch.Generator().manual_seed(1))


def test_every_dimension_is_the_embeddings_or_the_partners_and_the_chance_is_the_share():
    z = _embeddings()
    features = _features(z, 50, share=(0.3, 0.3))
    is_kept = features == z
    torch.testing.assert_close(features, torch.where(is_kept, z, _partners(z)), rtol=0, atol=1e-12)
    spread = (0.3 * 0.7 / features.numel()) ** 0.5
    assert abs((~is_kept).double().mean().item() - 0.3) < 5 * spread


def test_the_share_is_uniform_in_its_interval_for_each_feature():
    shares = (_features(_embeddings(), 1000, share=(0.2, 0.6)) != _embeddings()).double().mean(2).flatten()
    spread = 0.4 / 12**0.5
    assert abs(shares.mean().item() - 0.4) < 5 * spread / len(shares) ** 0.5
    assert abs(shares.std().item() - (spread**2 + 0.24 / WIDTH) ** 0.5) < 0.01  # of the share, and of the dimensions given it


def test_a_share_of_one_is_the_partner():
    z = _embeddings()
    torch.testing.assert_close(_features(z, 1, share=(1, 1))[0], _partners(z), rtol=0, atol=1e-12)


def test_the_gradient_passes_where_nothing_was_swapped():
    z = _embeddings().requires_grad_()
    features = _features(z, 3, share=(0.5, 0.5))
    features.sum().backward()
    assert torch.equal(z.grad, (features.detach() == z.detach()).sum(0).double())
