import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from ray_sassl.methods import moco_v3
from ray_sassl.methods.branches import FaConfig
from ray_sassl.methods.moco_v3 import moco_v3_loss
from ray_sassl.process.errors import UsageError

SMALL = {"projector_hidden_size": 8, "predictor_hidden_size": 8, "embedding_size": 4}


def _pair() -> Tensor:
    return torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _small(**options) -> moco_v3.MoCoV3:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return moco_v3.Config(**SMALL | options).build(backbone, 6)


def _vit() -> tuple[nn.Module, int]:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=8, depth=1, embed_dim=12, num_heads=2), 12


def _views() -> list[Tensor]:
    return [torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_the_loss_equals_the_equation():
    q, k = _pair()
    queries, keys = ([[x / math.hypot(*row) for x in row] for row in rows.tolist()] for rows in (q, k))
    expected = 0.0
    for i, query in enumerate(queries):
        scores = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / 0.3) for key in keys]
        expected -= 2 * 0.3 * math.log(scores[i] / sum(scores)) / len(q)
    assert moco_v3_loss(q, k, 0.3).item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_knows_neither_lengths_nor_the_order_of_images():
    q, k = _pair()
    order = torch.tensor([3, 1, 5, 0, 2, 6, 4])
    for a, b in [(3 * q, 0.2 * k), (q[order], k[order])]:
        torch.testing.assert_close(moco_v3_loss(a, b, 0.2), moco_v3_loss(q, k, 0.2), rtol=0, atol=1e-12)


def test_the_loss_of_equal_embeddings_is_its_chance_value():
    z = torch.ones(4, 3, dtype=torch.float64)
    assert moco_v3_loss(z, z, 0.2).item() == pytest.approx(2 * 0.2 * math.log(4), abs=1e-12)


def test_the_loss_of_orthogonal_images_has_its_closed_form():
    z = torch.eye(4, dtype=torch.float64)
    assert moco_v3_loss(z, z, 0.5).item() == pytest.approx(math.log(math.exp(2) + 3) - 2, abs=1e-12)


def test_keys_take_no_gradient():
    q, k = _pair()
    moco_v3_loss(q, k.requires_grad_(), 0.2).requires_grad_().backward()
    assert k.grad is None


def test_the_method_sums_both_directions():
    method, views = _small(), _views()
    output = method(views, torch.Generator())
    q1, q2 = (method.predictor(method.projector(method.backbone(view))) for view in views)
    k1, k2 = (method.key_projector(method.key_backbone(view)) for view in views)
    torch.testing.assert_close(output.loss, moco_v3_loss(q1, k2, 0.2) + moco_v3_loss(q2, k1, 0.2))
    assert output.chance_loss == pytest.approx(2 * 2 * 0.2 * math.log(6))


def test_without_a_predictor_the_embeddings_are_the_queries():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = moco_v3.Config(projector_hidden_size=8, embedding_size=4, fa=FaConfig(architecture="basic")).build(backbone, 6)
    views = _views()
    q1, q2 = (method.projector(method.backbone(view)) for view in views)
    k1, k2 = (method.key_projector(method.key_backbone(view)) for view in views)
    expected = moco_v3_loss(q1, k2, 0.2) + moco_v3_loss(q2, k1, 0.2)
    torch.testing.assert_close(method(views, torch.Generator()).loss, expected)


def test_metrics_are_those_of_the_first_direction():
    method, views = _small().eval(), _views()
    metrics = method(views, torch.Generator()).metrics
    q = F.normalize(method.predictor(method.projector(method.backbone(views[0]))), dim=1)
    k = F.normalize(method.key_projector(method.key_backbone(views[1])), dim=1)
    torch.testing.assert_close(metrics["positive_similarity"], (q * k).sum(1).mean())
    torch.testing.assert_close(metrics["instance_top1"], ((q @ k.T).argmax(1) == torch.arange(6)).float().mean())


def test_momentum_follows_the_progress_of_the_run_also_after_a_resume():
    method, resumed = _small(base_momentum=0.9), _small(base_momentum=0.9)
    method.after_step(0.5)
    resumed.load_state_dict(method.state_dict())
    assert resumed.momentum.item() == pytest.approx(0.95)
    with torch.no_grad():
        resumed.backbone[0].weight.add_(1.0)
    before = resumed.key_backbone[0].weight.clone()
    resumed.after_step(0.75)
    momentum = 1 - 0.1 * (math.cos(0.75 * math.pi) + 1) / 2
    assert resumed.momentum.item() == pytest.approx(momentum)
    torch.testing.assert_close(resumed.key_backbone[0].weight, momentum * before + (1 - momentum) * resumed.backbone[0].weight.detach())


def test_the_momentum_encoder_has_batch_statistics_of_its_own():
    method, views = _small(), _views()
    method(views, torch.Generator())
    with torch.no_grad():
        method.backbone[0].bias.add_(1)
    method(views, torch.Generator())
    before = method.key_backbone[1].running_mean.clone()
    assert not torch.allclose(before, method.backbone[1].running_mean)
    method.after_step(0.0)
    assert torch.equal(method.key_backbone[1].running_mean, before)


def test_a_vit_keeps_its_random_projection_of_patches():
    torch.manual_seed(0)
    method = moco_v3.Config(**SMALL).build(*_vit())
    start = method.backbone.patch_embed.proj.weight.clone()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        method(_views(), torch.Generator()).loss.backward()
        optimizer.step()
        method.after_step(0.1)
    for backbone in (method.backbone, method.key_backbone):
        assert torch.equal(backbone.patch_embed.proj.weight, start)
    assert not torch.equal(method.backbone.blocks[0].attn.qkv.weight, method.key_backbone.blocks[0].attn.qkv.weight)


def test_a_vits_projection_of_patches_is_trained_if_that_is_configured():
    method = moco_v3.Config(**SMALL, patch_embedding="trained").build(*_vit())
    assert all(parameter.requires_grad for parameter in method.backbone.patch_embed.parameters())


def test_torchvision_s_vit_keeps_its_random_projection_of_patches_too():
    backbone = VisionTransformer(image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    moco_v3.Config(**SMALL).build(backbone, 8)
    assert not any(parameter.requires_grad for parameter in backbone.conv_proj.parameters())
    assert backbone.class_token.requires_grad


@pytest.mark.parametrize("option", ["fixed", "trained"])
def test_an_option_for_patches_is_refused_for_encoders_without_patches(option):
    with pytest.raises(UsageError, match=rf"patch_embedding='{option}' has no effect"):
        _small(patch_embedding=option)


def test_a_resnet_is_trained_whole():
    assert all(parameter.requires_grad for parameter in _small().backbone.parameters())
