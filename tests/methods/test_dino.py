import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import dino
from ray_sassl.methods.dino import dino_loss


def _outputs(num_views: int, batch_size: int = 6, num_outputs: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num_views, batch_size, num_outputs, dtype=torch.float64, generator=generator) / 10)


def _small(**options) -> dino.DINO:
    torch.manual_seed(0)
    config = dino.Config(**{"num_outputs": 5, "projector_hidden_size": 8, "embedding_size": 4} | options)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return config.build(backbone, 6).double()


def _views(num_small: int = 0, batch_size: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, 8] + [5] * num_small
    return [torch.randn(batch_size, 3, size, size, generator=generator, dtype=torch.float64) for size in sizes]


def _teacher_outputs(method: dino.DINO, views: list[Tensor]) -> list[Tensor]:
    """The teacher's outputs for the two large views, with batch normalization as in a forward pass."""
    features = method.teacher_head.projector(method.teacher_backbone(torch.cat(views[:2])))
    return list((F.normalize(features, dim=1) @ F.normalize(method.teacher_head.directions, dim=1).T).detach().chunk(2))


def _loss_by_loops(student: list[Tensor], teacher: list[Tensor], center: Tensor, tau_s: float, tau_t: float) -> float:
    """Equation 3 of Caron et al. 2021, one scalar at a time, as the mean over pairs of the pseudo-code."""

    def softmax(values: list[float]) -> list[float]:
        exponentials = [math.exp(value) for value in values]
        return [value / sum(exponentials) for value in exponentials]

    loss, num_pairs = 0.0, 0
    for number, target in enumerate(teacher):
        for view, output in enumerate(student):
            if view == number:
                continue
            num_pairs += 1
            for t, s in zip(target.tolist(), output.tolist(), strict=True):
                q = softmax([(value - c) / tau_t for value, c in zip(t, center.tolist(), strict=True)])
                p = softmax([value / tau_s for value in s])
                loss -= sum(a * math.log(b) for a, b in zip(q, p, strict=True)) / len(target)
    return loss / num_pairs


@pytest.mark.parametrize("num_views", [2, 5])
def test_the_loss_equals_the_equation(num_views):
    student, teacher, center = _outputs(num_views), _outputs(2, seed=1), _outputs(1, 1, seed=2)[0][0]
    expected = _loss_by_loops(student, teacher, center, 0.1, 0.04)
    assert dino_loss(student, teacher, center, 0.1, 0.04).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_knows_neither_the_order_of_images_nor_of_outputs_nor_a_common_shift():
    student, teacher, center = _outputs(4), _outputs(2, seed=1), _outputs(1, 1, seed=2)[0]
    expected = dino_loss(student, teacher, center[0], 0.1, 0.04)
    images, outputs = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    changes = [lambda x: x[images] if len(x) > 1 else x, lambda x: x[:, outputs], lambda x: x + 3]
    for change in changes:
        changed = dino_loss([change(x) for x in student], [change(x) for x in teacher], change(center)[0], 0.1, 0.04)
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-11)


def test_a_teacher_that_is_centered_away_says_nothing_and_the_loss_is_its_chance_value():
    teacher = [torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).expand(4, 3)] * 2
    student = [torch.zeros(4, 3, dtype=torch.float64)] * 3
    assert dino_loss(student, teacher, teacher[0][0], 0.1, 0.04).item() == pytest.approx(math.log(3), abs=1e-12)


def test_the_loss_of_a_student_that_agrees_is_the_teachers_entropy():
    outputs = _outputs(1)[0]
    q = F.softmax(outputs / 0.1, dim=1)
    entropy = -(q * q.log()).sum(1).mean()
    loss = dino_loss([outputs] * 2, [outputs] * 2, torch.zeros(5, dtype=torch.float64), 0.1, 0.1)
    torch.testing.assert_close(loss, entropy, rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_teacher():
    student, teacher = [x.requires_grad_() for x in _outputs(2)], [x.requires_grad_() for x in _outputs(2, seed=1)]
    dino_loss(student, teacher, torch.zeros(5), 0.1, 0.04).backward()
    assert all(x.grad is not None for x in student)
    assert all(x.grad is None for x in teacher)


@pytest.mark.parametrize("num_small", [0, 3])
def test_the_method_shows_the_teacher_the_large_views_and_the_student_all(num_small):
    method, views = _small(), _views(num_small)
    groups = [torch.cat(views[:2])] + ([torch.cat(views[2:])] if num_small else [])  # batch normalization sees each size by itself
    embeddings = method.head.projector(torch.cat([method.backbone(group) for group in groups])).detach()
    student = (F.normalize(embeddings, dim=1) @ F.normalize(method.head.directions.detach(), dim=1).T).chunk(2 + num_small)
    teacher = _teacher_outputs(method, views)
    output = method(views, torch.Generator())
    expected = _loss_by_loops(list(student), teacher, torch.zeros(5, dtype=torch.float64), 0.1, method.teacher_temperature.item())
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(output.embeddings, embeddings[:6])
    assert output.chance_loss == pytest.approx(math.log(5))


def test_the_center_moves_after_the_loss_toward_the_mean_of_the_teachers_outputs():
    method, views = _small(center_momentum=0.75), _views()
    with torch.no_grad():
        method.center.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3, 0.05]))
    before = method.center.clone()
    teacher = _teacher_outputs(method, views)
    student = [method.head(method.backbone(torch.cat(views)))[1].detach().chunk(2)[view] for view in range(2)]
    output = method(views, torch.Generator())
    assert output.loss.item() == pytest.approx(_loss_by_loops(student, teacher, before, 0.1, method.teacher_temperature.item()), abs=1e-9)
    expected = 0.75 * before + 0.25 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(method.center, expected, rtol=0, atol=1e-12)


def test_the_teachers_temperature_rises_along_a_line_and_follows_the_progress_of_the_run_after_a_resume():
    method = _small(first_teacher_temperature=0.04, teacher_temperature=0.08, teacher_warmup=0.5)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method.after_step(progress)
        found.append(method.teacher_temperature.item())
    assert found == pytest.approx([0.04, 0.06, 0.08, 0.08])
    method.after_step(0.25)
    resumed = _small(first_teacher_temperature=0.04, teacher_temperature=0.08, teacher_warmup=0.5)
    assert resumed.teacher_temperature.item() == pytest.approx(0.04)
    resumed.load_state_dict(method.state_dict())
    assert resumed.teacher_temperature.item() == pytest.approx(0.06)
    assert _small(teacher_warmup=0).teacher_temperature.item() == pytest.approx(0.07)


def test_the_teacher_follows_with_a_momentum_that_rises_to_one():
    method = _small(base_momentum=0.9)
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.add_(1)
    before = method.teacher_head.directions.clone()
    method.after_step(0.5)
    torch.testing.assert_close(method.teacher_head.directions, 0.95 * before + 0.05 * (before + 1), rtol=0, atol=1e-12)
    assert method.momentum.item() == pytest.approx(0.95)
    moved = method.teacher_head.directions.clone()
    method.after_step(1.0)
    assert torch.equal(method.teacher_head.directions, moved)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_the_last_layer_is_frozen_at_the_start_of_the_run_and_only_then(norm_last_layer):
    method = _small(last_layer_frozen=0.25, norm_last_layer=norm_last_layer)
    last_layer = [p for name, p in method.head.named_parameters() if not name.startswith("projector")]
    assert len(last_layer) == (1 if norm_last_layer else 2)
    for progress in (0.0, 0.2, 0.25, 1.0):
        frozen = {id(parameter) for parameter in method.frozen_parameters(progress)}
        assert frozen == ({id(parameter) for parameter in last_layer} if progress < 0.25 else set())


def test_the_weights_of_an_output_have_the_length_that_is_trained_or_one():
    features = torch.randn(7, 6, dtype=torch.float64)
    for norm_last_layer, length in ((True, 1.0), (False, 3.0)):
        head = _small(norm_last_layer=norm_last_layer).head
        with torch.no_grad():
            head.directions.mul_(5)
            if head.lengths is not None:
                head.lengths.fill_(3)
        embeddings, outputs = head(features)
        cosines = F.normalize(embeddings, dim=1) @ F.normalize(head.directions, dim=1).T
        torch.testing.assert_close(outputs, length * cosines, rtol=0, atol=1e-12)


def test_the_teacher_has_batch_statistics_of_its_own():
    method = _small()
    method([view + 3 for view in _views()], torch.Generator())
    with torch.no_grad():
        method.backbone[0].bias.add_(1)
    method([view + 3 for view in _views()], torch.Generator())
    before = method.teacher_backbone[1].running_mean.clone()
    assert not torch.allclose(before, method.backbone[1].running_mean)
    method.after_step(0.0)
    assert torch.equal(method.teacher_backbone[1].running_mean, before)


def test_nothing_is_remembered_in_evaluation_mode():
    method = _small().eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(_views(), torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
