import math

import pytest
import torch
from torch import Tensor, nn

from ray_sassl.methods import simsiam
from ray_sassl.methods.simsiam import simsiam_loss


def _pair() -> Tensor:
    return torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _small(**options) -> simsiam.SimSiam:
    torch.manual_seed(0)
    config = simsiam.Config(**{"projector_hidden_size": 8, "predictor_hidden_size": 3, "embedding_size": 6} | options)
    return config.build(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6)


def _views() -> list[Tensor]:
    return [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_the_loss_is_the_negative_cosine():
    p, t = _pair()
    expected = 0.0
    for a, b in zip(p.tolist(), t.tolist(), strict=True):
        expected -= sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)) / len(p)
    assert simsiam_loss(p, t).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_does_not_know_lengths():
    p, t = _pair()
    torch.testing.assert_close(simsiam_loss(5 * p, 0.1 * t), simsiam_loss(p, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cosine", [1.0, 0.0, -1.0, 0.6])
def test_the_loss_of_a_known_angle(cosine):
    p = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    assert simsiam_loss(p, t).item() == pytest.approx(-cosine, abs=1e-12)


def test_the_method_takes_the_mean_of_both_directions_without_a_gradient_through_the_targets():
    method, views = _small(), _views()
    output = method(views, torch.Generator())
    output.loss.backward()
    gradients = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    z1, z2 = (method.projector(method.backbone(view)) for view in views)
    p1, p2 = method.predictor(z1), method.predictor(z2)
    expected = simsiam_loss(p1, z2.detach()) / 2 + simsiam_loss(p2, z1.detach()) / 2
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    for gradient, parameter in zip(gradients, method.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert output.metrics["positive_similarity"].item() == pytest.approx(-expected.item(), abs=1e-6)


def test_the_embeddings_end_in_a_batch_normalization_without_scale_and_the_predictions_do_not():
    method = _small()
    assert isinstance(method.projector[-1], nn.modules.batchnorm._BatchNorm)
    assert list(method.projector[-1].parameters()) == []
    assert isinstance(method.predictor[-1], nn.Linear)
    assert [layer.out_features for layer in method.predictor if isinstance(layer, nn.Linear)] == [3, 6]


@pytest.mark.parametrize(("predictor_lr", "is_constant"), [("decayed", False), ("constant", True)])
def test_only_the_predictor_may_keep_its_learning_rate(predictor_lr, is_constant):
    method = _small(predictor_lr=predictor_lr)
    constant = {id(parameter) for parameter in method.constant_lr_parameters()}
    assert constant == ({id(parameter) for parameter in method.predictor.parameters()} if is_constant else set())
