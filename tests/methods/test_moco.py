import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import moco
from ray_sassl.methods.moco import info_nce, info_nce_logits
from ray_sassl.process.errors import UsageError


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def _small(**options) -> moco.MoCo:
    torch.manual_seed(0)
    config = moco.Config(**{"queue_size": 10, "projector_hidden_size": 8, "embedding_size": 4} | options)
    return config.build(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6)


def _views(batch_size: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch_size, 3, 8, 8, generator=generator) for _ in range(2)]


def test_info_nce_equals_the_equation():
    q, k, negatives = _unit(5, 6), _unit(5, 6, seed=1), _unit(9, 6, seed=2)
    expected = 0.0
    for query, key in zip(q.tolist(), k.tolist(), strict=True):
        scores = [math.exp(sum(a * b for a, b in zip(query, other, strict=True)) / 0.07) for other in [key, *negatives.tolist()]]
        expected -= math.log(scores[0] / sum(scores)) / len(q)
    assert info_nce(q, k, negatives, 0.07).item() == pytest.approx(expected, abs=1e-9)


def test_info_nce_does_not_know_the_order_of_the_queue():
    q, k, negatives = _unit(5, 6), _unit(5, 6, seed=1), _unit(9, 6, seed=2)
    torch.testing.assert_close(info_nce(q, k, negatives.flip(0), 0.2), info_nce(q, k, negatives, 0.2), rtol=0, atol=1e-12)


def test_info_nce_of_equal_embeddings_is_its_chance_value():
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert info_nce(q, q, q.expand(9, 2), 0.2).item() == pytest.approx(math.log(1 + 9), abs=1e-12)


def test_a_left_out_negative_has_no_effect():
    q, k, negatives = _unit(1, 6), _unit(1, 6, seed=1), _unit(4, 6, seed=2)
    is_own = torch.tensor([[False, True, False, True]])
    torch.testing.assert_close(info_nce(q, k, negatives, 0.2, is_own), info_nce(q, k, negatives[::2], 0.2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_taken_with_the_queue_as_it_was_before_the_step(symmetric):
    method, views = _small(symmetric=symmetric), _views()
    before, _ = method.queue.read()
    output = method(views, torch.Generator())
    expected = torch.zeros(())
    for query_view, key_view in [(views[0], views[1]), (views[1], views[0])][: 1 + symmetric]:
        q = F.normalize(method.projector(method.backbone(query_view)), dim=1)
        k = F.normalize(method.key_projector(method.key_backbone(key_view)), dim=1)
        expected = expected + F.cross_entropy(info_nce_logits(q, k, before, 0.2), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(output.loss, expected)
    assert output.chance_loss == pytest.approx((1 + symmetric) * math.log(11))


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_negative_is_a_key_of_the_query_s_own_sample(symmetric, monkeypatch):
    method, views, steps = _small(symmetric=symmetric, momentum=1.0), _views(), []
    compute_logits = moco.info_nce_logits

    def spy(q, k, negatives, temperature, is_own):
        logits = compute_logits(q, k, negatives, temperature, is_own)
        is_kept = torch.isfinite(logits[:, 1:])
        steps.append((k @ negatives.T)[is_kept].max().item())
        return logits

    monkeypatch.setattr(moco, "info_nce_logits", spy)
    for _ in range(3):  # with a momentum of 1 the older keys of a sample equal its key of this step
        method(views, torch.Generator(), torch.arange(4))
    assert (method.queue.sample_id == 0).sum() >= 2
    assert max(steps) < 1 - 1e-6


def test_both_views_keys_enter_the_queue_with_their_sample_ids():
    method = _small(symmetric=True)
    method(_views(), torch.Generator(), torch.tensor([5, 6, 7, 8]))
    assert method.queue.sample_id.tolist() == [5, 6, 7, 8, 5, 6, 7, 8, -1, -1]


def test_split_batch_normalization_returns_the_keys_in_the_order_of_the_images():
    method, (view, _) = _small(bn="split", num_splits=2).eval(), _views(6)
    torch.testing.assert_close(method._keys(view, torch.Generator().manual_seed(3)), method._encode_keys(view))


def test_split_batch_normalization_groups_queries_and_keys_differently():
    method, (view, _) = _small(bn="split", num_splits=2), _views(6)
    with torch.no_grad():
        q = F.normalize(method.projector(method.backbone(view)), dim=1)
    assert not torch.allclose(method._keys(view, torch.Generator().manual_seed(3)), q, atol=1e-4)
    assert torch.allclose(method._encode_keys(view), q)


def test_shuffling_with_one_worker_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="only one; set method\\.bn=split"):
        _small(bn="shuffle")(_views(), torch.Generator())


def test_a_number_of_splits_without_split_batch_normalization_is_refused():
    with pytest.raises(ValidationError, match="num_splits=4 has no effect"):
        moco.Config(num_splits=4)


def test_the_key_encoder_moves_by_its_momentum_and_keeps_its_batch_statistics():
    method = _small(momentum=0.75)
    with torch.no_grad():
        method.backbone[0].weight.add_(1.0)
    method(_views(), torch.Generator())
    weight, mean = method.key_backbone[0].weight.clone(), method.key_backbone[1].running_mean.clone()
    method.after_step(0.1)
    torch.testing.assert_close(method.key_backbone[0].weight, 0.75 * weight + 0.25 * method.backbone[0].weight.detach())
    assert torch.equal(method.key_backbone[1].running_mean, mean)
    assert not torch.allclose(mean, method.backbone[1].running_mean)
