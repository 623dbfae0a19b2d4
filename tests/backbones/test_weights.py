"""Weights from files of others: which tensors are the encoder's, and what is refused."""

from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.backbones.weights import Source, load_weights, read_state
from ray_sassl.process.errors import UsageError


def _encoder(name: str = "resnet18", seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(BackboneConfig(name=name, **options))[0]


def _features(encoder: nn.Module) -> Tensor:
    encoder.eval()
    with torch.inference_mode():
        return encoder(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _moco(state: dict[str, Tensor]) -> dict[str, Any]:
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    heads = {"module.encoder_q.fc.0.weight": torch.zeros(4, 4), "module.queue": torch.zeros(4, 8)}
    tensors = _prefixed(other, "module.encoder_k.") | _prefixed(state, "module.encoder_q.") | heads
    return {"epoch": 200, "arch": "resnet18", "state_dict": tensors, "optimizer": {"state": {}, "param_groups": []}}


def _dino(state: dict[str, Tensor]) -> dict[str, Any]:
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    teacher = _prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(4, 4)}
    return {"student": _prefixed(other, "module.backbone."), "teacher": teacher, "epoch": 3, "args": argparse.Namespace(arch="resnet18")}


FORMS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": lambda state: dict(state),
    "with a classifier": lambda state: state | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)},
    "moco": _moco,
    "dino": _dino,
    "lightning": lambda state: {"state_dict": _prefixed(state, "backbone.") | {"projection_head.0.weight": torch.zeros(2, 2)}},
    "data parallel": lambda state: {"model": _prefixed(state, "module.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_files_as_they_are_published_give_the_same_features(form: str):
    source, encoder = _encoder(seed=1), _encoder(seed=2)
    content = io.BytesIO()
    torch.save(FORMS[form](source.state_dict()), content)
    loaded = load_weights(encoder, Source(form, read_state(content.getvalue(), f"{form}.pth")))
    assert torch.equal(_features(encoder), _features(source))
    assert loaded.num_parameters == sum(parameter.numel() for parameter in encoder.parameters())
    assert not any(name.startswith("layer") for name in loaded.left)


def test_the_state_of_torchvision_and_timm_fits_their_networks_here():
    for name, model in (("resnet18", torchvision.models.resnet18()), ("timm/resnet18", timm.create_model("resnet18"))):
        encoder = _encoder(name)
        content = safetensors.torch.save(model.state_dict())
        loaded = load_weights(encoder, Source("file", read_state(content, "model.safetensors")))
        assert set(loaded.left) == {"fc.bias", "fc.weight"}
        assert torch.equal(encoder.state_dict()["layer4.1.conv2.weight"], model.state_dict()["layer4.1.conv2.weight"])


def test_another_network_is_refused_with_what_is_missing_and_what_differs():
    state = _encoder("resnet50").state_dict()
    with pytest.raises(UsageError, match=r"(?s)does not fit the encoder: \d+% .*of other shapes: layer1.0.conv1.weight.*backbone.name"):
        load_weights(_encoder("resnet18"), Source("resnet50.pth", state))
    with pytest.raises(UsageError, match=r"conv1.weight \(64, 3, 7, 7\), not \(64, 3, 3, 3\)"):
        load_weights(_encoder("resnet18", stem="cifar"), Source("file", _encoder("resnet18").state_dict()))
    part = {name: tensor for name, tensor in _encoder().state_dict().items() if not name.startswith("layer4")}
    with pytest.raises(UsageError, match=r"missing: layer4\.0\.conv1\.weight"):
        load_weights(_encoder(), Source("part", part))
    with pytest.raises(UsageError, match="no tensor with a name of the encoder's"):
        load_weights(_encoder(), Source("other", {"a": torch.zeros(1)}))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(_Evil()), pickle.dumps([1]), b"PK\x03\x04broken"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_without_weights_is_refused_and_its_code_does_not_run(content: bytes, name: str):
    with pytest.raises(UsageError, match=name):
        read_state(content, name)


def test_freezing_random_weights_is_refused():
    with pytest.raises(ValueError, match="would keep random weights"):
        BackboneConfig(freeze="stem")
    assert BackboneConfig.model_validate({"weights": "file.pth", "freeze": 2}).freeze == "2"
