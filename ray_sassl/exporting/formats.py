"""An encoder's tensors under the names of torchvision and timm, checked with a model that the library builds.

Our encoders keep the names of their library, and some networks (above all ResNets) have the same names and functions in both libraries, so
nothing has to be translated: a new model of the library must load the tensors with `strict=True` and give the same features. Otherwise the
export is refused, and the message lists formats that fit.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn

from ray_sassl.backbones import BackboneConfig
from ray_sassl.backbones.resnet_cifar import CIFAR_RESNETS
from ray_sassl.exporting.encoder import MODEL, Encoder
from ray_sassl.process.errors import UsageError

Library = Literal["torchvision", "timm"]
Format = Literal["torchvision", "timm", "hf", "onnx", "safetensors"]
HUB_CONFIG = "config.json"

TOLERANCE = 1e-4


class FormatError(UsageError):
    """The encoder cannot be exported in this format."""


@dataclass(frozen=True)
class LibraryModel:
    """A network of torchvision or timm that can load an encoder's tensors.

    Attributes:
        model: The network, newly built with random weights.
        head: The name of its classifier, which is the identity if the encoder has no head.
        code: Lines of Python that build it, for the card.
        options: What timm's `create_model` was given besides the name and the number of classes.
    """

    model: nn.Module
    head: str
    code: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def library_model(encoder: Encoder, library: Library) -> LibraryModel:
    """The library's model with the weights of the encoder and its head, loaded with `strict=True` and checked to give the same outputs.

    Raises:
        FormatError: the library has no such network; the message lists formats that fit.
    """
    backbone = encoder.facts.backbone
    if backbone.name in CIFAR_RESNETS:
        raise FormatError(
            f"{backbone.name} is a ResNet for CIFAR (He et al. 2016, section 4.2), which neither torchvision nor timm has. Formats that "
            "fit: safetensors (ray_sassl.load_encoder reads it) and onnx."
        )
    num_classes = encoder.head.out_features if encoder.head is not None else 0
    with torch.random.fork_rng(devices=[]):
        built = (_torchvision if library == "torchvision" else _timm)(backbone, num_classes)
    if built is None:
        raise _unsuited(backbone, library, f"{library} has no {_bare(backbone)}")
    built.model.eval()
    state = library_state(encoder, built.head)
    try:
        built.model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _unsuited(backbone, library, f"its tensors do not fit {library}'s {_bare(backbone)}: {_first_line(error)}") from error
    images = example_images(encoder, 2)
    with torch.inference_mode():
        features = encoder(images)
        expected = features if encoder.head is None else encoder.head(features)
        difference = largest_difference(built.model(images), expected)
    if difference > TOLERANCE:
        raise _unsuited(backbone, library, f"{library}'s {_bare(backbone)} loads its tensors but computes other features")
    return built


def hub_config(encoder: Encoder, built: LibraryModel) -> str:
    """The `config.json` with which a folder or a repository of Hugging Face is loaded by timm, and by the timm wrapper of transformers: the
    architecture, the classes, and how images are prepared.

    Raises:
        FormatError: timm has the network, but not with the stem for small images.
    """
    facts = encoder.facts
    if len(built.code) > 1:
        raise FormatError(
            f"{_bare(facts.backbone)} with backbone.stem=cifar cannot be described in {HUB_CONFIG}, since timm has no such stem. Formats "
            "that fit: timm (the card has two lines that change the stem), safetensors, onnx."
        )
    classes = encoder.head.out_features if encoder.head is not None else 0
    published: Any = built.model.pretrained_cfg
    theirs = {name: value for name, value in published.items() if name in ("first_conv", "fixed_input_size")}
    prepared = {
        "input_size": [3, facts.size_px, facts.size_px],
        "interpolation": facts.interpolation,
        "crop_pct": _crop_share(facts.size_px, facts.view.shorter_px),
        "crop_mode": "squash" if facts.view.shorter_px is None else "center",
        "mean": facts.pixel_mean,
        "std": facts.pixel_std,
    }
    config: dict[str, Any] = {
        "architecture": _bare(facts.backbone),
        "num_classes": classes,
        "num_features": facts.num_features,
        "model_args": built.options,
        "pretrained_cfg": theirs | prepared | {"custom_load": False, "num_classes": classes, "classifier": built.head},
    }
    if facts.classes:
        config["label_names"] = facts.classes
    return json.dumps(config, indent=2) + "\n"


def check_hub_folder(encoder: Encoder, weights: bytes, config: str) -> None:
    """Have timm load a folder with the two files, and compare the outputs.

    Raises:
        FormatError: it cannot, or computes something else.
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), torch.inference_mode():
        (Path(folder) / MODEL).write_bytes(weights)
        (Path(folder) / HUB_CONFIG).write_text(config)
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        except RuntimeError as error:
            raise _unsuited(encoder.facts.backbone, "timm", f"timm does not load the folder: {_first_line(error)}") from error
        images = example_images(encoder, 2)
        features = encoder(images)
        difference = largest_difference(model(images), features if encoder.head is None else encoder.head(features))
    if difference > TOLERANCE:
        raise _unsuited(encoder.facts.backbone, "timm", "timm loads the folder but computes other features")


def _crop_share(size_px: int, side: int | None) -> float:
    """timm's `crop_pct`: it resizes the shorter side to the whole part of `size_px / crop_pct`, which is to be `side`."""
    if side in (None, size_px):
        return 1.0
    return next(share for share in (7 / 8, size_px / (side + 0.25)) if math.floor(size_px / share) == side)


def library_state(encoder: Encoder, head: str) -> dict[str, Tensor]:
    """The tensors of the backbone and, under the name `head`, of the linear layer."""
    state = dict(encoder.backbone.state_dict())
    if encoder.head is not None:
        state |= {f"{head}.{name}": tensor for name, tensor in encoder.head.state_dict().items()}
    return state


def example_images(encoder: Encoder, num_images: int) -> Tensor:
    """(num_images, 3, S, S) of normalized noise, always the same."""
    size_px = encoder.facts.size_px
    return torch.randn(num_images, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, divided by the largest expected value if that is above 1."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def _torchvision(backbone: BackboneConfig, num_classes: int) -> LibraryModel | None:
    name = _bare(backbone)
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    model = torchvision.models.get_model(name, weights=None)
    linear = [part for part, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        return None
    head = linear[-1]
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    code = [f'model = torchvision.models.get_model("{name}")']
    if num_classes:
        model.set_submodule(head, nn.Linear(layer.in_features, num_classes))
        code.append(f'model.set_submodule("{head}", torch.nn.Linear({layer.in_features}, {num_classes}))')
    else:
        model.set_submodule(head, nn.Identity())
        code.append(f'model.set_submodule("{head}", torch.nn.Identity())')
    return LibraryModel(model, head, (*code, *_cifar_stem(model, backbone)))


def _timm(backbone: BackboneConfig, num_classes: int) -> LibraryModel | None:
    name = _bare(backbone)
    if name not in timm.list_models():
        return None
    options: dict[str, Any] = {"dynamic_img_size": True} if timm.models.is_model_in_modules(name, ["vision_transformer"]) else {}
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    head = (getattr(model, "default_cfg", None) or {}).get("classifier")
    if not isinstance(head, str):
        return None
    written = "".join(f", {key}={value}" for key, value in options.items())
    code = (f'model = timm.create_model("{name}", num_classes={num_classes}{written})',)
    return LibraryModel(model, head, (*code, *_cifar_stem(model, backbone)), options)


def _cifar_stem(model: nn.Module, backbone: BackboneConfig) -> tuple[str, ...]:
    """Changes a ResNet's stem as `backbone.stem=cifar` does; returns the lines of Python that do it."""
    conv = getattr(model, "conv1", None)
    if backbone.stem != "cifar" or not isinstance(conv, nn.Conv2d):
        return ()
    model.set_submodule("conv1", nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=False))
    model.set_submodule("maxpool", nn.Identity())
    return (
        f"model.conv1 = torch.nn.Conv2d(3, {conv.out_channels}, 3, padding=1, bias=False)  # the stem for small images",
        "model.maxpool = torch.nn.Identity()",
    )


def _unsuited(backbone: BackboneConfig, library: Library, reason: str) -> FormatError:
    own: Library = "timm" if backbone.name.startswith("timm/") else "torchvision"
    suited = ([own] if own != library else []) + ["safetensors", "onnx"]
    return FormatError(f"{backbone.name} cannot be exported for {library}: {reason}. Formats that fit: {', '.join(suited)}.")


def _bare(backbone: BackboneConfig) -> str:
    return backbone.name.rpartition("/")[2]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0])[:200]
