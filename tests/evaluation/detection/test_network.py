"""An encoder cut into stages, and the detectors around it."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.detection.network import build_detector, stages_of
from ray_sassl.process.errors import UsageError

ENCODERS = [
    (BackboneConfig(name="resnet18"), [64, 128, 256, 512], [4, 8, 16, 32]),
    (BackboneConfig(name="resnet18", stem="cifar"), [64, 128, 256, 512], [1, 2, 4, 8]),
    (BackboneConfig(name="resnet50"), [256, 512, 1024, 2048], [4, 8, 16, 32]),
    (BackboneConfig(name="timm/resnet18"), [64, 128, 256, 512], [4, 8, 16, 32]),
    (BackboneConfig(name="resnet20"), [16, 32, 64], [1, 2, 4]),
]
SMALL = {"train_px": (64,), "test_px": 64, "max_px": 96, "rois_per_image": 16, "test_proposals": 20}


def _encoder(config: BackboneConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(config)[0]


@pytest.mark.parametrize(("config", "channels", "strides"), ENCODERS)
def test_the_mean_of_the_last_stages_maps_is_the_feature(config, channels, strides):
    encoder = _encoder(config).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, maps = encoder(x), x
        for stage, width, stride in zip(stages_of(encoder), channels, strides, strict=True):
            maps = stage(maps)
            assert maps.shape == (2, width, 64 // stride, 64 // stride)
        torch.testing.assert_close(maps.mean((2, 3)), expected)


@pytest.mark.parametrize("config", [BackboneConfig(name="timm/vit_tiny_patch16_224"), BackboneConfig(name="mobilenet_v3_small")])
def test_an_encoder_without_such_stages_is_refused_with_the_reason(config):
    with pytest.raises(UsageError, match="detection needs a ResNet"):
        stages_of(_encoder(config))


def test_an_encoder_whose_features_are_made_otherwise_is_refused():
    encoder = _encoder(BackboneConfig(name="resnet18"))
    encoder.avgpool = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(UsageError, match="are not the means of its last maps"):
        stages_of(encoder)


def _losses(detector: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 56)]
    targets = [
        {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},  # an image without objects
    ]
    return detector(images, targets)


@pytest.mark.parametrize("architecture", ["c4", "fpn"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
@pytest.mark.parametrize("batch_norm", ["synced", "frozen"])
def test_every_layer_of_the_encoder_learns(architecture, name, batch_norm):
    encoder = _encoder(BackboneConfig(name=name))
    before = copy.deepcopy(encoder.state_dict())
    weights = {key: parameter for key, parameter in encoder.named_parameters() if parameter.ndim > 1}
    detector = build_detector(encoder, DetectConfig(architecture=architecture, batch_norm=batch_norm, **SMALL), 3, (0.5,) * 3, (0.25,) * 3)
    sum(_losses(detector).values()).backward()
    for key, parameter in weights.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
        assert torch.equal(parameter, before[key])  # it starts from the encoder's weights
    frozen = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert bool(frozen) == (batch_norm == "frozen")


@pytest.mark.parametrize("architecture", ["c4", "fpn"])
def test_frozen_batch_norm_computes_what_the_encoder_does_in_evaluation(architecture):
    encoder = _encoder(BackboneConfig(name="resnet18"))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    whole = copy.deepcopy(encoder).eval()
    detector = build_detector(encoder, DetectConfig(architecture=architecture, batch_norm="frozen", **SMALL), 3, (0.5,) * 3, (0.25,) * 3)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stages = stages_of(whole)
        expected = stages[1](stages[0](x))
        inner = detector.backbone.stages
        torch.testing.assert_close(inner[1](inner[0](x)), expected)


def test_detections_have_the_classes_without_the_background():
    detector = build_detector(
        _encoder(BackboneConfig(name="resnet20")), DetectConfig(architecture="c4", **SMALL), 3, (0.5,) * 3, (0.25,) * 3
    )
    with torch.no_grad():
        outputs = detector.eval()([torch.rand(3, 48, 64)])
    assert set(outputs[0]["labels"].tolist()) <= {1, 2, 3}
    assert detector.roi_heads.box_predictor.cls_score.out_features == 4
