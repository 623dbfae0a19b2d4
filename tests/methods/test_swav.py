import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import swav
from ray_sassl.methods.swav import sinkhorn, swav_loss


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _scores(num_views: int = 4, batch_size: int = 6, num_prototypes: int = 5) -> list[Tensor]:
    prototypes = _unit(num_prototypes, 3, seed=9)
    return [_unit(batch_size, 3, seed=view) @ prototypes.T for view in range(num_views)]


def _small(**options) -> swav.SwAV:
    torch.manual_seed(0)
    config = swav.Config(**{"num_prototypes": 5, "projector_hidden_size": 8, "embedding_size": 4} | options)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return config.build(backbone, 6).double()


def _views(num_small: int = 0, batch_size: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, 8] + [5] * num_small
    return [torch.randn(batch_size, 3, size, size, generator=generator, dtype=torch.float64) for size in sizes]


def _sinkhorn_by_loops(scores: Tensor, epsilon: float, num_iterations: int) -> list[list[float]]:
    """Cuturi's algorithm as in section 3.1 of Caron et al. 2020: Q of shape (K, B), to marginals 1/K and 1/B, then each column to 1."""
    num_images, num_prototypes = scores.shape
    q = [[math.exp(scores[b, k].item() / epsilon) for b in range(num_images)] for k in range(num_prototypes)]
    total = sum(sum(row) for row in q)
    q = [[value / total for value in row] for row in q]
    for _ in range(num_iterations):
        for k in range(num_prototypes):
            u = sum(q[k])
            q[k] = [value / u / num_prototypes for value in q[k]]
        for b in range(num_images):
            v = sum(q[k][b] for k in range(num_prototypes))
            for k in range(num_prototypes):
                q[k][b] = q[k][b] / v / num_images
    return [[q[k][b] * num_images for k in range(num_prototypes)] for b in range(num_images)]


def _loss_by_loops(scores: list[Tensor], codes: list[Tensor], temperature: float) -> float:
    """Equation 2, over the pairs of a view with codes and another view, as in the official code."""
    loss, num_pairs = 0.0, 0
    for number, code in enumerate(codes):
        for view, score in enumerate(scores):
            if view == number:
                continue
            num_pairs += 1
            for q, z in zip(code.tolist(), score.tolist(), strict=True):
                total = sum(math.exp(value / temperature) for value in z)
                loss -= sum(a * math.log(math.exp(value / temperature) / total) for a, value in zip(q, z, strict=True)) / len(code)
    return loss / num_pairs


@pytest.mark.parametrize("num_iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_codes_equal_the_papers_algorithm(epsilon, num_iterations):
    scores = _scores()[0]
    expected = torch.tensor(_sinkhorn_by_loops(scores, epsilon, num_iterations), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, epsilon, num_iterations), expected, rtol=0, atol=1e-9)


def test_codes_sum_to_one_and_fill_all_prototypes_alike():
    codes = sinkhorn(_scores(1, 40)[0], 0.5, 100)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 8.0, dtype=torch.float64), rtol=0, atol=1e-9)


def test_codes_do_not_know_how_near_a_prototype_is_to_all_images():
    scores = _scores()[0] / 2
    nearer = scores + torch.tensor([0.5, 0.0, -0.5, 0.0, 0.1])
    torch.testing.assert_close(sinkhorn(nearer, 0.05, 3), sinkhorn(scores, 0.05, 3), rtol=0, atol=1e-9)


def test_as_many_images_as_prototypes_get_one_each():
    codes = sinkhorn(torch.eye(4, dtype=torch.float64), 0.05, 3)
    torch.testing.assert_close(codes, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-7)


def test_images_that_look_alike_get_equal_shares_of_all_prototypes():
    codes = sinkhorn(torch.tensor([[0.9, -0.9]]).expand(3, 2), 0.05, 3)
    torch.testing.assert_close(codes, torch.full((3, 2), 0.5))


def test_rows_that_take_no_part_do_not_change_the_others():
    scores = _scores()[0]
    others = torch.full((3, 5), -math.inf, dtype=torch.float64)
    codes = sinkhorn(torch.cat([scores, others]), 0.05, 3)
    torch.testing.assert_close(codes[:6], sinkhorn(scores, 0.05, 3), rtol=0, atol=1e-12)
    assert torch.equal(codes[6:], torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("num_views", [2, 5])
def test_the_loss_equals_the_equation(num_views):
    scores = _scores(num_views)
    codes = [sinkhorn(score, 0.05, 3) for score in scores[:2]]
    assert swav_loss(scores, codes, 0.1).item() == pytest.approx(_loss_by_loops(scores, codes, 0.1), abs=1e-9)


def test_the_loss_knows_neither_the_order_of_images_nor_of_prototypes_nor_of_the_large_views():
    scores = _scores()
    codes = [sinkhorn(score, 0.05, 3) for score in scores[:2]]
    images, prototypes = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([4, 2, 0, 1, 3])
    expected = swav_loss(scores, codes, 0.1)
    for change in (lambda x: x[images], lambda x: x[:, prototypes]):
        changed = swav_loss([change(score) for score in scores], [change(code) for code in codes], 0.1)
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-12)
    swapped = swav_loss([scores[1], scores[0], *scores[2:]], codes[::-1], 0.1)
    torch.testing.assert_close(swapped, expected, rtol=0, atol=1e-12)


def test_the_loss_of_predictions_that_say_nothing_is_its_chance_value():
    codes = [sinkhorn(score, 0.05, 3) for score in _scores(2)]
    nothing = [torch.full((6, 5), 0.3, dtype=torch.float64)] * 3
    assert swav_loss(nothing, codes, 0.1).item() == pytest.approx(math.log(5), abs=1e-12)
    assert _small()(_views(), torch.Generator()).chance_loss == pytest.approx(math.log(5))


@pytest.mark.parametrize("num_small", [0, 3])
def test_the_method_predicts_the_codes_of_the_large_views_from_all(num_small):
    method, views = _small(), _views(num_small)
    groups = [torch.cat(views[:2])] + ([torch.cat(views[2:])] if num_small else [])  # batch normalization sees each size by itself
    features = torch.cat([method.backbone(group) for group in groups])
    z = F.normalize(method.projector(features), dim=1)
    scores = list((z @ method.prototypes.T).detach().chunk(2 + num_small))
    codes = [torch.tensor(_sinkhorn_by_loops(score, 0.05, 3), dtype=torch.float64) for score in scores[:2]]
    output = method(views, torch.Generator())
    assert output.loss.item() == pytest.approx(_loss_by_loops(scores, codes, 0.1), abs=1e-9)
    assert output.embeddings.shape == (6, 4)


def test_prototypes_have_length_one_from_the_start_and_after_every_update():
    method = _small(prototypes_frozen=0)
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(method.prototypes.norm(dim=1), one, rtol=0, atol=1e-6)
    with torch.no_grad():
        method.prototypes.mul_(3).add_(0.5)
    direction = F.normalize(method.prototypes.detach(), dim=1)
    method.after_step(0.5)
    torch.testing.assert_close(method.prototypes.detach(), direction, rtol=0, atol=1e-12)


def test_prototypes_are_frozen_at_the_start_of_the_run_and_only_then():
    method = _small(prototypes_frozen=0.25)
    frozen = [method.frozen_parameters(progress) for progress in (0.0, 0.2, 0.25, 1.0)]
    assert [[parameter is method.prototypes for parameter in parameters] for parameters in frozen] == [[True], [True], [], []]


@pytest.mark.parametrize(
    ("progress_after_steps", "is_used"),
    [([0.6, 0.7, 0.8], [False, False, True]), ([0.1, 0.2, 0.6, 0.7], [False, False, False, True])],
)
def test_the_queue_is_used_for_the_codes_when_it_is_full_and_its_start_is_reached(progress_after_steps, is_used):
    method, steps = _small(queue_size=10, queue_start=0.5), []
    for step, progress in enumerate(progress_after_steps):
        views = _views(seed=step)
        queued = [queue.embeddings.clone() for queue in method.queues]
        z = F.normalize(method.projector(method.backbone(torch.cat(views))), dim=1).detach().chunk(2)
        output = method(views, torch.Generator())
        scores = [own @ method.prototypes.T.detach() for own in z]
        with_queue = [torch.cat([score, old @ method.prototypes.T.detach()]) for score, old in zip(scores, queued, strict=True)]
        expected = {
            False: [_sinkhorn_by_loops(score, 0.05, 3) for score in scores],
            True: [_sinkhorn_by_loops(score, 0.05, 3)[:6] for score in with_queue],
        }
        losses = {
            used: _loss_by_loops(scores, [torch.tensor(rows, dtype=torch.float64) for rows in codes], 0.1)
            for used, codes in expected.items()
        }
        steps.append(min(losses, key=lambda used: abs(losses[used] - output.loss.item())))
        assert output.loss.item() == pytest.approx(losses[steps[-1]], abs=1e-9)
        assert abs(losses[True] - losses[False]) > 1e-6
        method.after_step(progress)
    assert steps == is_used


def test_each_large_view_has_a_queue_with_its_own_embeddings():
    method, views = _small(queue_size=10), _views()
    z = F.normalize(method.projector(method.backbone(torch.cat(views))), dim=1).detach().chunk(2)
    method(views, torch.Generator())
    for queue, own in zip(method.queues, z, strict=True):
        torch.testing.assert_close(queue.embeddings[:6], own, rtol=0, atol=1e-12)


def test_nothing_is_remembered_in_evaluation_mode():
    method = _small(queue_size=10).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(_views(), torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_codes_stay_finite_in_float32_at_the_smallest_epsilon():
    scores = torch.tensor([[-1.0, -1.0, -0.9], [1.0, 1.0, 0.9], [-1.0, 1.0, 0.0]])
    codes = sinkhorn(scores, 0.025, 3)
    torch.testing.assert_close(codes.double(), sinkhorn(scores.double(), 0.025, 3), rtol=1e-4, atol=1e-6)


def test_a_start_of_a_queue_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match=r"queue_start=0\.2 has no effect"):
        swav.Config(queue_start=0.2)
