import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ray_sassl.methods import simclr
from ray_sassl.methods.simclr import nt_xent, nt_xent_logits


def _embeddings(batch_size: int = 6, size: int = 5) -> torch.Tensor:
    return torch.randn(2, batch_size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _nt_xent_by_loops(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> float:
    """Equation 1 of Chen et al. 2020 with pairs (2k-1, 2k), one scalar at a time."""
    z = [row.tolist() for pair in zip(z1, z2, strict=True) for row in pair]

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def loss(i: int, j: int) -> float:
        others = sum(math.exp(similarity(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(similarity(z[i], z[j]) / temperature) / others)

    return sum(loss(i, i ^ 1) for i in range(len(z))) / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_equals_the_equation(temperature):
    z1, z2 = _embeddings()
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(_nt_xent_by_loops(z1, z2, temperature), abs=1e-9)


def test_nt_xent_knows_neither_the_order_of_views_nor_of_images_nor_lengths():
    z1, z2 = _embeddings()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for a, b in [(z2, z1), (z1[order], z2[order]), (3 * z1, 0.2 * z2)]:
        torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent(z1, z2, 0.2), rtol=0, atol=1e-12)


def test_nt_xent_of_equal_embeddings_is_its_chance_value():
    z = torch.ones(4, 3, dtype=torch.float64)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(2 * 4 - 1), abs=1e-12)


def test_nt_xent_of_orthogonal_images_has_its_closed_form():
    z = torch.eye(4, dtype=torch.float64)
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(math.exp(2) + 6) - 2, abs=1e-12)


def test_a_view_is_never_its_own_candidate():
    z1, z2 = _embeddings()
    logits, positives = nt_xent_logits(z1, z2, 0.1)
    assert torch.equal(torch.isinf(logits), torch.eye(12, dtype=torch.bool))
    expected = F.cosine_similarity(torch.cat([z1, z2]), torch.cat([z2, z1])) / 0.1
    torch.testing.assert_close(logits[torch.arange(12), positives], expected, rtol=0, atol=1e-12)


def test_the_method_is_nt_xent_of_both_views_to_the_bit():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = simclr.Config(projector_hidden_size=8, embedding_size=4, temperature=0.3).build(backbone, 6)
    views = [torch.randn(5, 3, 8, 8) for _ in range(2)]
    output = method(views, torch.Generator())
    output.loss.backward()
    gradients = [parameter.grad.clone() for parameter in method.parameters()]
    method.zero_grad()
    expected = nt_xent(*method.projector(method.backbone(torch.cat(views))).chunk(2), 0.3)
    expected.backward()
    assert torch.equal(output.loss, expected)
    assert all(torch.equal(gradient, parameter.grad) for gradient, parameter in zip(gradients, method.parameters(), strict=True))
    assert output.chance_loss == pytest.approx(math.log(9))
