"""Encoders by name: torchvision's, timm's as `timm/NAME`, and the CIFAR ResNets of He et al. 2016.

Every encoder maps (B, 3, H, W) to features (B, F). It is built with random weights; `weights.py` puts others in. Torch is imported by the
functions that build, and not by processes that only read a config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig, did_you_mean
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

PUBLISHED = ("timm:", "torchvision:")
"""What `backbone.weights` may begin with in place of a path."""


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class BackboneConfig(FrozenConfig):
    """Which encoder is trained.

    Attributes:
        name: A torchvision model ("resnet50"), a timm model ("timm/vit_small_patch16_224"), or a CIFAR ResNet ("resnet20").
        stem: "imagenet" is the network's own stem. "cifar", for ResNets, is a 3x3 convolution of stride 1 without max-pooling (Chen et al.
            2020, SimCLR, appendix B.9), for images of about 32 px; the CIFAR ResNets have it by nature.
        zero_init_residual: The last normalization of each residual block starts at 0, so that the block starts as the identity (Goyal et
            al. 2017, arXiv 1706.02677, section 5.1); for ResNets. The official code of SimCLR and BYOL does so, that of MoCo does not.
        weights: Where the first weights come from: a run directory or a checkpoint, a safetensors or PyTorch file (state dicts of
            torchvision and timm, files of MoCo, SimCLR and DINO as published), `timm:NAME` or `torchvision:NAME`; random by default.
        freeze: What keeps these weights: "none", "stem", "all", or a number of blocks, which are frozen with the stem (`layer1`, ... of
            a ResNet, blocks of a transformer).
    """

    name: str = "resnet50"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    zero_init_residual: bool = False
    weights: Annotated[str | None, LocalPath(prefixes=PUBLISHED)] = None
    freeze: Annotated[str, BeforeValidator(_number_as_text), Field(pattern=r"^(none|stem|all|\d{1,3})$")] = "none"

    @model_validator(mode="after")
    def _what_is_frozen_has_weights(self) -> Self:
        if self.freeze != "none" and self.weights is None:
            raise ValueError(f"backbone.freeze={self.freeze} would keep random weights as they are; give backbone.weights too")
        return self


def build_backbone(config: BackboneConfig) -> tuple[nn.Module, int]:
    """The encoder, (B, 3, H, W) -> (B, F), and F; weights are drawn from torch's global generator.

    Raises:
        UsageError: the name is unknown, or an option cannot be applied to this network.
    """
    from ray_sassl.backbones.resnet_cifar import CIFAR_RESNETS, cifar_resnet

    if config.name in CIFAR_RESNETS:
        return cifar_resnet(config.name, config.zero_init_residual)
    source, _, name = config.name.rpartition("/")
    if source == "timm":
        backbone, num_features = _timm_backbone(config, name)
    elif source == "":
        backbone, num_features = _torchvision_backbone(config)
    else:
        raise UsageError(f"no source of backbones is called {source!r}; write a torchvision name, or 'timm/NAME'")
    if config.stem == "cifar":
        _set_cifar_stem(backbone, config.name)
    return backbone, num_features


def _torchvision_backbone(config: BackboneConfig) -> tuple[nn.Module, int]:
    import torchvision  # slow to import, and most processes of a run build no encoder
    from torch import nn

    from ray_sassl.backbones.resnet_cifar import CIFAR_RESNETS

    known = torchvision.models.list_models(module=torchvision.models)
    if config.name not in known:
        near = did_you_mean(config.name, [*known, *CIFAR_RESNETS])
        raise UsageError(f"backbone has no {config.name!r}{near}. Known: torchvision's models, 'timm/NAME', {', '.join(CIFAR_RESNETS)}.")
    options = {"zero_init_residual": True} if config.zero_init_residual else {}
    if options and not config.name.startswith(("resnet", "resnext", "wide_resnet")):
        raise UsageError(f"zero_init_residual is for ResNets; {config.name} has no such option")
    model = torchvision.models.get_model(config.name, weights=None, **options)
    linear_layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear_layers or hasattr(model, "aux_logits"):
        raise UsageError(
            f"{config.name} cannot be an encoder here: its classifier is not a single linear layer on top; try resnet18 or resnet50"
        )
    classifier = model.get_submodule(linear_layers[-1])
    assert isinstance(classifier, nn.Linear)
    model.set_submodule(linear_layers[-1], nn.Identity())
    return model, classifier.in_features


def _timm_backbone(config: BackboneConfig, name: str) -> tuple[nn.Module, int]:
    import timm  # slow to import, and most runs do not need it

    known = timm.list_models()
    if name not in known:
        raise UsageError(f"timm has no {name!r}{did_you_mean(name, known)}; `timm.list_models()` lists its {len(known)} models")
    is_resnet = timm.models.is_model_in_modules(name, ["resnet"])
    if config.zero_init_residual and not is_resnet:
        raise UsageError(f"zero_init_residual is for ResNets; {config.name} has no such option")
    options: dict[str, Any] = {"zero_init_last": config.zero_init_residual} if is_resnet else {}
    if timm.models.is_model_in_modules(name, ["vision_transformer"]):
        options["dynamic_img_size"] = True  # local crops too: the position embedding is resampled to their size
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    num_features = getattr(model, "head_hidden_size", None) or getattr(model, "num_features", None)
    assert isinstance(num_features, int)
    return model, num_features


def _set_cifar_stem(backbone: nn.Module, name: str) -> None:
    from torch import nn

    conv = getattr(backbone, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(backbone, "maxpool", None), nn.MaxPool2d):
        raise UsageError(f"stem='cifar' replaces the 7x7 convolution and max-pooling of a ResNet, which {name} does not have")
    stem = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    backbone.set_submodule("conv1", stem)
    backbone.set_submodule("maxpool", nn.Identity())
