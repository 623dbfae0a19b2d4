import math

import pytest
import torch
from torch import Tensor, nn

from ray_sassl.backbones import BackboneConfig
from ray_sassl.methods import distill
from ray_sassl.methods.distill import distillation_loss


def _pair(width: int = 4) -> Tensor:
    return torch.randn(2, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_loss_equals_its_definition_and_knows_no_lengths():
    p, t = _pair()
    cosines = []
    for a, b in zip(p.tolist(), t.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        cosines.append(dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))
    assert distillation_loss(p, t).item() == pytest.approx(1 - sum(cosines) / 7, abs=1e-12)
    torch.testing.assert_close(distillation_loss(3 * p, t / 7), distillation_loss(p, t), rtol=0, atol=1e-12)
    assert distillation_loss(t, t).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(-t, t).item() == pytest.approx(2, abs=1e-12)


def test_gradients_equal_finite_differences_and_do_not_reach_the_teacher():
    p, t = _pair()
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, t), p.requires_grad_())
    distillation_loss(p, t.requires_grad_()).backward()
    assert t.grad is None


def _backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _views() -> list[Tensor]:
    return list(torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_a_teachers_features_set_the_width_of_the_predictions():
    config = distill.Config(teacher="timm:resnet18", teacher_backbone=BackboneConfig(name="resnet18"), predictor_hidden_size=8)
    assert config.num_targets == 512
    method = config.build(_backbone(), 6)
    targets = torch.randn(6, 512).half()
    output = method(_views(), torch.Generator(), None, targets)
    assert output.embeddings.shape == (6, 512)
    unit = nn.functional.normalize(targets.float(), dim=1)
    best = unit.mean(0, keepdim=True).expand(6, -1)
    assert distillation_loss(best, targets.float()).item() == pytest.approx(output.metrics["constant_loss"].item(), abs=1e-6)


def test_without_a_teacher_the_encoder_as_it_started_teaches_and_stays_as_it_is():
    method = distill.Config(predictor_hidden_size=8).build(backbone := _backbone(), 6)
    views = _views()
    before = backbone.eval()(views[1])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    method.train()
    for _ in range(3):
        optimizer.zero_grad()
        output = method(views, torch.Generator())
        output.loss.backward()
        optimizer.step()
    assert method.start is not None
    assert torch.equal(method.start(views[1]), before)
    assert not torch.equal(backbone.eval()(views[1]), before)
    assert torch.equal(output.loss.detach(), distillation_loss(output.embeddings, before))
