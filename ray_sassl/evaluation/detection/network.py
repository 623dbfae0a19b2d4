"""torchvision's Faster R-CNN with one of our encoders; nothing else is pretrained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ray_sassl.backbones.resnet_cifar import CifarResNet
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.features import evaluation_mode
from ray_sassl.nn.sync_batchnorm import convert
from ray_sassl.process.errors import UsageError

_RATIOS = (0.5, 1.0, 2.0)
_PROBE_PX = 64


def build_detector(
    encoder: nn.Module, config: DetectConfig, num_classes: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> FasterRCNN:
    """The detector in training mode; the encoder's own layers become part of it, new ones are drawn from torch's global generator.

    Args:
        num_classes: Number of classes without the background, which is label 0 of the detector.

    Raises:
        UsageError: the encoder cannot be split into stages of decreasing resolution.
    """
    stages = stages_of(encoder)
    channels, strides = _shapes(stages)
    build = _c4 if config.architecture == "c4" else _fpn
    backbone, parts = build(stages, channels, strides, config, num_classes + 1)
    detector = FasterRCNN(
        backbone,
        min_size=config.train_px,  # pyright: ignore[reportArgumentType]
        max_size=config.max_px,
        image_mean=list(pixel_mean),
        image_std=list(pixel_std),
        box_batch_size_per_image=config.rois_per_image,
        rpn_post_nms_top_n_test=config.test_proposals,
        **parts,
    )
    if config.batch_norm == "frozen":
        for stage in stages:
            _freeze_batch_norm(stage)
        return detector.train()
    return convert(detector.train())


def stages_of(encoder: nn.Module) -> list[nn.Sequential]:
    """The encoder as stages of decreasing resolution, the first with the stem. Its features are the means of the last stage's maps.

    Raises:
        UsageError: it is not a ResNet, or its features are computed differently.
    """
    if isinstance(encoder, CifarResNet):
        blocks = list(encoder.blocks)
        third = len(blocks) // 3
        first = nn.Sequential(encoder.conv1, encoder.bn1, nn.ReLU(inplace=True), *blocks[:third])
        stages = [first, nn.Sequential(*blocks[third : 2 * third]), nn.Sequential(*blocks[2 * third :])]
    else:
        children = dict(encoder.named_children())
        names = list(children)
        layers = [f"layer{number}" for number in range(1, 5)]
        if not set(layers) <= set(names):
            raise UsageError(
                f"detection needs a ResNet, whose maps have decreasing resolution: torchvision's (resnet18, resnet50), timm's, or a "
                f"CIFAR one (resnet20); this encoder is a {type(encoder).__name__}"
            )
        stem = [children[name] for name in names[: names.index("layer1")]]
        stages = [nn.Sequential(*stem, children["layer1"]), *(nn.Sequential(children[name]) for name in layers[1:])]
    _check_stages(encoder, stages)
    return stages


@torch.no_grad()
def _check_stages(encoder: nn.Module, stages: list[nn.Sequential]) -> None:
    with evaluation_mode(encoder):
        x = torch.linspace(-1, 1, 3 * _PROBE_PX**2, device=_device_of(encoder)).sin().view(1, 3, _PROBE_PX, _PROBE_PX)
        features, maps = encoder(x), x
        for stage in stages:
            maps = stage.eval()(maps)
        if features.shape != maps.shape[:2] or not torch.allclose(features, maps.mean((2, 3)), rtol=1e-3, atol=1e-4):
            raise UsageError(
                f"detection cannot split this {type(encoder).__name__} into stages: its features are not the means of its last maps"
            )


@torch.no_grad()
def _shapes(stages: list[nn.Sequential]) -> tuple[list[int], list[int]]:
    """Channels and stride of each stage's maps."""
    channels, strides = [], []
    maps = torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=_device_of(stages[0]))
    for stage in stages:
        was_training = stage.training
        maps = stage.eval()(maps)
        stage.train(was_training)
        channels.append(maps.shape[1])
        strides.append(_PROBE_PX // maps.shape[2])
    return channels, strides


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class _Trunk(nn.Module):
    """All stages but the last, which give one map."""

    def __init__(self, stages: list[nn.Sequential], out_channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


class _LastStage(nn.Module):
    """The last stage as the head of regions: (R, C, 14, 14) -> (R, D). The new norm after it is MoCo's (`Res5ROIHeadsExtraNorm`)."""

    def __init__(self, stage: nn.Sequential, norm: nn.Module) -> None:
        super().__init__()
        self.stage, self.norm = stage, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stage(x)).mean((2, 3))


def _c4(
    stages: list[nn.Sequential], channels: list[int], strides: list[int], config: DetectConfig, num_outputs: int
) -> tuple[nn.Module, dict[str, Any]]:
    norm = nn.BatchNorm2d(channels[-1]) if config.batch_norm == "synced" else nn.Identity()
    sizes = tuple(strides[-2] * multiple for multiple in (2, 4, 8, 16, 32))
    return _Trunk(stages[:-1], channels[-2]), {
        "rpn_anchor_generator": AnchorGenerator((sizes,), (_RATIOS,)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=0),
        "box_head": _LastStage(stages[-1], norm),
        "box_predictor": FastRCNNPredictor(channels[-1], num_outputs),
    }


class _Pyramid(nn.Module):
    """A feature pyramid over the maps of all stages."""

    def __init__(self, stages: list[nn.Sequential], channels: list[int], config: DetectConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        norm = nn.BatchNorm2d if config.batch_norm == "synced" else None
        self.pyramid = FeaturePyramidNetwork(channels, config.fpn_channels, LastLevelMaxPool(), norm)
        self.out_channels = config.fpn_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(number)] = x
        return self.pyramid(maps)


def _fpn(
    stages: list[nn.Sequential], channels: list[int], strides: list[int], config: DetectConfig, num_outputs: int
) -> tuple[nn.Module, dict[str, Any]]:
    sizes = tuple((8 * stride,) for stride in (*strides, 2 * strides[-1]))
    return _Pyramid(stages, channels, config), {
        "rpn_anchor_generator": AnchorGenerator(sizes, (_RATIOS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign([str(number) for number in range(len(stages))], output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(config.fpn_channels * 49, config.hidden_size),
        "box_predictor": FastRCNNPredictor(config.hidden_size, num_outputs),
    }


def _freeze_batch_norm(stage: nn.Module) -> None:
    """Make statistics, scales and shifts constants.

    Raises:
        UsageError: the stage has another kind of batch normalization.
    """
    for name, module in list(stage.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) is not nn.BatchNorm2d:
            raise UsageError(f"batch normalization of the kind {type(module).__name__} cannot be frozen here; take batch_norm=synced")
        frozen = FrozenBatchNorm2d(module.num_features, module.eps).to(module.weight.device)
        frozen.load_state_dict(module.state_dict())
        stage.set_submodule(name, frozen)
