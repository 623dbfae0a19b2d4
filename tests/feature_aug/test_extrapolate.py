import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug.extrapolate import Config

WIDTH = 5


def _embeddings() -> Tensor:
    z = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * torch.tensor([1, 2, 3, 4, 5, 6])[:, None]


def test_the_feature_stands_lambda_beyond_the_embedding_as_seen_from_its_partner():
    z = _embeddings()[:2]  # each the other's only partner
    features = Config(lambda_range=(0.3, 0.3)).build(WIDTH, 1)(z, torch.Generator())[0]
    length = [row.square().sum().sqrt() for row in z]
    expected = torch.stack([1.3 * z[i] - 0.3 * z[1 - i] / length[1 - i] * length[i] for i in range(2)])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


def test_the_feature_is_less_similar_to_its_partner_than_the_embedding_was():
    z = _embeddings()[:2]
    features = Config(lambda_range=(0.1, 0.5)).build(WIDTH, 8)(z, torch.Generator().manual_seed(0))
    before, after = F.cosine_similarity(z, z.flip(0), dim=1), F.cosine_similarity(features, z.flip(0)[None], dim=2)
    assert (after < before).all()


def test_the_gradient_is_one_and_lambda():
    z = _embeddings().requires_grad_()
    Config(lambda_range=(0.3, 0.3)).build(WIDTH, 2)(z, torch.Generator()).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 2 * 1.3), rtol=0, atol=1e-6)
