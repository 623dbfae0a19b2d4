"""An encoder as ONNX."""

from __future__ import annotations

import builtins
import json

import numpy as np
import onnxruntime
import pytest
import torch

from ray_sassl.exporting.formats import FormatError, example_images
from ray_sassl.exporting.onnx_file import onnx_bytes
from ray_sassl.process.errors import UsageError
from tests.exporting.test_formats import encoder_named


@pytest.mark.parametrize(
    ("name", "num_classes"), [("resnet20", 0), ("resnet20", 4), pytest.param("timm/vit_tiny_patch16_224", 0, marks=pytest.mark.slow)]
)
def test_onnxruntime_gives_the_features_of_torch_for_any_number_of_images(name: str, num_classes: int):
    encoder = encoder_named(name, num_classes=num_classes, size_px=32)
    session = onnxruntime.InferenceSession(onnx_bytes(encoder), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["features", "logits"][: 2 if num_classes else 1]
    for num_images in (1, 5):
        images = example_images(encoder, num_images)
        with torch.inference_mode():
            features = encoder(images)
            expected = [features] if encoder.head is None else [features, encoder.head(features)]
        found = [np.asarray(output) for output in session.run(None, {"images": images.numpy()})]
        for ours, theirs in zip(expected, found, strict=True):
            assert theirs.shape == ours.shape
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)


def test_the_model_says_how_images_are_prepared():
    encoder = encoder_named("resnet20", size_px=16)
    session = onnxruntime.InferenceSession(onnx_bytes(encoder), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["ray_sassl"])
    assert (facts["size_px"], facts["pixel_std"], facts["weights_sha256"]) == (16, [0.2] * 3, encoder.facts.weights_sha256)


def test_a_model_that_computes_something_else_is_not_handed_out(monkeypatch: pytest.MonkeyPatch):
    encoder = encoder_named("resnet20", size_px=16)
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *args: [np.asarray(output) + 1e-3 for output in run(*args)])
    with pytest.raises(FormatError, match=r"features of 1 images differ from torch's by \d\.\de-0\d, and 1e-04 is allowed"):
        onnx_bytes(encoder)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    importing = builtins.__import__

    def without_onnx(name, *args, **options):
        if name == "onnxruntime":
            raise ImportError(name=name)
        return importing(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(UsageError, match=r"\(onnxruntime\): pip install 'ray-sassl\[onnx\]'"):
        onnx_bytes(encoder_named("resnet20", size_px=16))
