import math

import pytest
import torch
from torch import nn

from ray_sassl.methods import byol
from ray_sassl.methods.byol import byol_loss


def _pair() -> torch.Tensor:
    return torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _small(base_momentum: float = 0.9) -> byol.BYOL:
    config = byol.Config(base_momentum=base_momentum, projector_hidden_size=8, predictor_hidden_size=8, embedding_size=4)
    return config.build(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6)


def test_the_loss_is_the_squared_distance_of_unit_vectors():
    p, t = _pair()
    expected = 0.0
    for a, b in zip(p.tolist(), t.tolist(), strict=True):
        length_a, length_b = math.hypot(*a), math.hypot(*b)
        expected += sum((x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True)) / len(p)
    assert byol_loss(p, t).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_does_not_know_lengths():
    p, t = _pair()
    torch.testing.assert_close(byol_loss(5 * p, 0.1 * t), byol_loss(p, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cosine", "expected"), [(1.0, 0.0), (0.0, 2.0), (-1.0, 4.0)])
def test_the_loss_of_a_known_angle(cosine, expected):
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    assert byol_loss(p, t).item() == pytest.approx(expected, abs=1e-12)


def test_the_method_sums_both_directions():
    method = _small()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    output = method(views, torch.Generator())
    p1, p2 = (method.predictor(method.projector(method.backbone(view))) for view in views)
    t1, t2 = (method.target_projector(method.target_backbone(view)) for view in views)
    torch.testing.assert_close(output.loss, byol_loss(p1, t2) + byol_loss(p2, t1))


def test_momentum_follows_the_progress_of_the_run_also_after_a_resume():
    method, resumed = _small(), _small()
    method.after_step(0.5)
    assert method.momentum.item() == pytest.approx(0.95)
    resumed.load_state_dict(method.state_dict())
    assert resumed.momentum.item() == pytest.approx(0.95)
    resumed.after_step(1.0)
    assert resumed.momentum.item() == 1.0


def test_the_target_network_has_batch_statistics_of_its_own():
    method = _small()
    method([torch.randn(6, 3, 8, 8) + 3 for _ in range(2)], torch.Generator())
    with torch.no_grad():
        method.backbone[0].bias.add_(1)
    method([torch.randn(6, 3, 8, 8) + 3 for _ in range(2)], torch.Generator())
    before = method.target_backbone[1].running_mean.clone()
    assert not torch.allclose(before, method.backbone[1].running_mean)
    method.after_step(0.0)
    assert torch.equal(method.target_backbone[1].running_mean, before)
