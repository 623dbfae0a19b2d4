"""NNCLR against its definition: Dwibedi et al. 2021 (arXiv 2104.14548), section 3.2."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.feature_aug.nearest import Config as Nearest
from ray_sassl.methods import nnclr
from ray_sassl.methods.branches import FaConfig
from ray_sassl.methods.nnclr import nnclr_logits

SUPPORT_SIZE = 32


def _small(**options) -> nnclr.NNCLR:
    torch.manual_seed(0)
    fa = FaConfig(augmentation=Nearest(support_size=SUPPORT_SIZE))
    config = nnclr.Config(**{"projector_hidden_size": 8, "embedding_size": 4, "fa": fa} | options)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return config.build(backbone, 6).double()


def _views(step: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def _unit(rows: Tensor) -> list[list[float]]:
    return [[x / math.hypot(*row) for x in row] for row in rows.tolist()]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _nearest(z: list[float], support: list[list[float]]) -> list[float]:
    return min(support, key=lambda q: math.dist(z, q))


def _direction(z: Tensor, p: Tensor, support: list[list[float]], temperature: float) -> float:
    """Mean over i of -log(exp(NN(z_i) p_i / tau) / sum_k exp(NN(z_i) p_k / tau)), one scalar at a time."""
    neighbors, predictions = [_nearest(row, support) for row in _unit(z)], _unit(p)
    loss = 0.0
    for i, neighbor in enumerate(neighbors):
        scores = [math.exp(_dot(neighbor, prediction) / temperature) for prediction in predictions]
        loss -= math.log(scores[i] / sum(scores)) / len(predictions)
    return loss


def _cross_entropy(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    return F.cross_entropy(*nnclr_logits(a, b, temperature))


def test_the_method_equals_its_equation_with_the_support_set_of_the_first_views():
    method = _small(temperature=0.3)
    first_views = []
    for step in range(8):  # the support set is full of embeddings from the sixth step on
        output = method(_views(step), torch.Generator(), torch.arange(6) + 6 * step)
        z1, z2 = method.projector(method.backbone(torch.cat(_views(step)))).detach().chunk(2)
        if step >= 6:
            support = _unit(torch.cat(first_views)[-SUPPORT_SIZE:])
            p1, p2 = method.predictor(z1).detach(), method.predictor(z2).detach()
            expected = _direction(z1, p2, support, 0.3) / 2 + _direction(z2, p1, support, 0.3) / 2
            assert output.loss.item() == pytest.approx(expected, abs=1e-9)
            assert output.chance_loss == pytest.approx(math.log(6))
        first_views.append(z1)


def test_a_direction_equals_the_equation():
    z, p, support = torch.randn(3, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    neighbors = torch.tensor([_nearest(row, _unit(support)) for row in _unit(z)], dtype=torch.float64)
    assert _cross_entropy(neighbors, p, 0.1).item() == pytest.approx(_direction(z, p, _unit(support), 0.1), abs=1e-9)


def test_a_direction_knows_neither_lengths_nor_the_order_of_images():
    neighbors, p = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for a, b in [(3 * neighbors, 0.2 * p), (neighbors[order], p[order])]:
        torch.testing.assert_close(_cross_entropy(a, b), _cross_entropy(neighbors, p), rtol=0, atol=1e-12)


def test_a_direction_of_equal_embeddings_is_its_chance_value():
    z = torch.ones(4, 3, dtype=torch.float64)
    assert _cross_entropy(z, z).item() == pytest.approx(math.log(4), abs=1e-12)


def test_a_direction_of_orthogonal_images_has_its_closed_form():
    z = torch.eye(4, dtype=torch.float64)
    assert _cross_entropy(z, z, 0.5).item() == pytest.approx(math.log(math.exp(2) + 3) - 2, abs=1e-12)


def test_gradients_reach_the_encoder_only_through_the_predictions():
    method = _small()
    method(_views(), torch.Generator(), torch.arange(6)).loss.backward()
    whole = [p.grad.clone() for p in method.backbone.parameters()]
    method = _small()
    z1, z2 = method.projector(method.backbone(torch.cat(_views()))).chunk(2)
    n1, n2 = (method.branches.augmentation(z.detach(), torch.Generator(), torch.arange(6))[0].detach() for z in (z1, z2))
    p1, p2 = method.predictor(z1), method.predictor(z2)
    ((_cross_entropy(n1, p2, 0.1) + _cross_entropy(n2, p1, 0.1)) / 2).backward()
    for gradient, parameter in zip(whole, method.backbone.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-10)


def test_without_the_predictor_the_neighbors_are_still_the_anchors():
    method = _small(fa=FaConfig(augmentation=Nearest(support_size=SUPPORT_SIZE), architecture="basic"))
    assert method.predictor is None
    support = _unit(method.branches.augmentation.support.directions)
    output = method(_views(), torch.Generator(), torch.arange(6))
    z1, z2 = method.projector(method.backbone(torch.cat(_views()))).detach().chunk(2)
    expected = _direction(z1, z2, support, 0.1) / 2 + _direction(z2, z1, support, 0.1) / 2
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)


def test_the_heads_are_the_paper_s():
    method = nnclr.Config().build(nn.Identity(), 2048)
    kinds = [type(layer).__name__ for layer in method.projector]
    assert kinds == ["Linear", "SyncBatchNorm", "ReLU"] * 2 + ["Linear", "SyncBatchNorm"]
    assert [layer.out_features for layer in method.projector if isinstance(layer, nn.Linear)] == [2048, 2048, 256]
    assert [layer.out_features for layer in method.predictor if isinstance(layer, nn.Linear)] == [4096, 256]
    assert isinstance(method.predictor[-1], nn.Linear)
    assert method.branches.architecture == "parallel_predictor"
    assert method.branches.augmentation.support.size == 98_304
