"""An encoder's tensors in models that torchvision and timm build themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.exporting.encoder import Encoder, EncoderFacts
from ray_sassl.exporting.formats import FormatError, Library, example_images, largest_difference, library_model, library_state
from ray_sassl.nn.digest import weights_sha256
from tests.exporting.conftest import drawn_backbone


def encoder_named(name: str, *, stem: str = "imagenet", num_classes: int = 0, size_px: int = 64) -> Encoder:
    config = BackboneConfig.model_validate({"name": name, "stem": stem})
    backbone = drawn_backbone(config)
    num_features = build_backbone(config)[1]
    facts = EncoderFacts(
        backbone=config,
        num_features=num_features,
        size_px=size_px,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.2, 0.2, 0.2),
        experiment="drawn",
        source="nowhere",
        step=0,
        weights_sha256=weights_sha256(backbone),
        version="0",
    )
    return Encoder(backbone, facts, nn.Linear(num_features, num_classes) if num_classes else None)


def _built_as_the_card_says(code: tuple[str, ...], folder: Path) -> nn.Module:
    script = folder / "card.py"
    script.write_text("\n".join(code))
    model = runpy.run_path(str(script), {"torch": torch, "torchvision": torchvision, "timm": timm})["model"]
    assert isinstance(model, nn.Module)
    return model.eval()


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize(
    ("name", "stem", "library"),
    [
        ("resnet18", "imagenet", "torchvision"),
        ("resnet18", "imagenet", "timm"),
        ("resnet18", "cifar", "torchvision"),
        ("resnet18", "cifar", "timm"),
        ("mobilenet_v3_small", "imagenet", "torchvision"),
        ("timm/resnet18", "imagenet", "timm"),
        ("timm/resnet18", "imagenet", "torchvision"),
        ("timm/vit_tiny_patch16_224", "imagenet", "timm"),
    ],
)
def test_the_librarys_own_model_takes_the_tensors_strictly_and_agrees(
    name: str, stem: str, library: Library, num_classes: int, tmp_path: Path
):
    encoder = encoder_named(name, stem=stem, num_classes=num_classes)
    built = library_model(encoder, library)
    fresh = _built_as_the_card_says(built.code, tmp_path)
    fresh.load_state_dict(library_state(encoder, built.head), strict=True)
    images = example_images(encoder, 2)
    with torch.inference_mode():
        features = encoder(images)
        expected = features if encoder.head is None else encoder.head(features)
        assert torch.allclose(fresh(images), expected, atol=1e-5)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_resnets_for_cifar_are_refused_with_the_formats_that_suit(library: Library):
    with pytest.raises(FormatError, match=r"resnet20 is a ResNet for CIFAR .* neither torchvision nor timm .*safetensors .*onnx"):
        library_model(encoder_named("resnet20", size_px=16), library)


@pytest.mark.parametrize(
    ("name", "library", "suits"),
    [
        ("mobilenet_v3_small", "timm", "timm has no mobilenet_v3_small. Formats that fit: torchvision, safetensors, onnx"),
        ("timm/vit_tiny_patch16_224", "torchvision", "torchvision has no vit_tiny_patch16_224. Formats that fit: timm, safetensors, onnx"),
        ("efficientnet_b0", "timm", "its tensors do not fit timm's efficientnet_b0: .*Formats that fit: torchvision"),
    ],
)
def test_another_librarys_network_is_refused_with_the_formats_that_suit(name: str, library: Library, suits: str):
    with pytest.raises(FormatError, match=suits):
        library_model(encoder_named(name), library)


def test_a_model_that_takes_the_tensors_and_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch):
    encoder = encoder_named("resnet18")
    build = torchvision.models.get_model

    def with_another_pool(*args, **options):
        model = build(*args, **options)
        model.maxpool = nn.AvgPool2d(3, 2, 1)
        return model

    monkeypatch.setattr(torchvision.models, "get_model", with_another_pool)
    with pytest.raises(FormatError, match="loads its tensors but computes other features"):
        library_model(encoder, "torchvision")


def test_the_difference_is_relative_to_large_values_and_absolute_for_small_ones():
    assert largest_difference(torch.tensor([1.5, 8.0]), torch.tensor([1.0, 8.0])) == pytest.approx(0.5 / 8)
    assert largest_difference(torch.tensor([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)
