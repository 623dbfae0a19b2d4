"""What every method must do, run over all that are found."""

import copy
import math

import pytest
import torch
from torch import Tensor

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.methods import MethodConfig
from ray_sassl.nn.method import Method
from ray_sassl.plugins import load_plugin, plugin_names

NAMES = plugin_names("ray_sassl.methods")
each_method = pytest.mark.parametrize("name", NAMES)


def _tiny(name: str) -> MethodConfig:
    return load_plugin("ray_sassl.methods", name).Config.tiny()


def _build(name: str, seed: int = 0) -> Method:
    config = _tiny(name)
    torch.manual_seed(seed)
    backbone, num_features = build_backbone(BackboneConfig(name="resnet20"))
    return config.build(backbone, num_features)


def _views(step: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(6, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(2)]


def _train(method: Method, steps: range, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for step in steps:
        optimizer.zero_grad()
        method(_views(step), torch.Generator().manual_seed(step)).loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 10)
    return optimizer


@each_method
def test_every_trainable_parameter_gets_a_finite_gradient(name):
    method = _build(name)
    output = method(_views(), torch.Generator())
    output.loss.backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@each_method
def test_outputs_have_their_shapes_and_are_detached(name):
    output = _build(name)(_views(), torch.Generator())
    assert output.loss.shape == ()
    assert output.embeddings.shape == (6, getattr(_tiny(name), "embedding_size", output.embeddings.shape[1]))
    assert math.isfinite(output.chance_loss)
    assert all(value.shape == () and not value.requires_grad for value in (*output.metrics.values(), output.embeddings.sum()))


@each_method
def test_a_rebuilt_method_continues_bit_identically_from_the_state_dict(name):
    method = _build(name)
    optimizer = _train(method, range(2))
    state, optimizer_state = copy.deepcopy(method.state_dict()), copy.deepcopy(optimizer.state_dict())
    _train(method, range(2, 4), optimizer)

    resumed = _build(name, seed=1)
    resumed.load_state_dict(state)
    resumed_optimizer = torch.optim.SGD([p for p in resumed.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    resumed_optimizer.load_state_dict(optimizer_state)
    _train(resumed, range(2, 4), resumed_optimizer)
    for key, value in method.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@each_method
def test_momentum_networks_move_after_a_step_and_only_then(name):
    method = _build(name)
    frozen = [p for p in method.parameters() if not p.requires_grad]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    before = [p.clone() for p in frozen]
    method(_views(), torch.Generator()).loss.backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(frozen, before, strict=True))
    method.after_step(0.1)
    assert not frozen or any(not torch.equal(a, b) for a, b in zip(frozen, before, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if load_plugin("ray_sassl.methods", name).Config.takes_small_views])
def test_a_method_of_small_views_takes_any_number_of_them(name):
    method = _build(name)
    generator = torch.Generator().manual_seed(0)
    for num_small in (0, 1, 9):
        views = _views() + [torch.randn(6, 3, 4, 4, generator=generator) for _ in range(num_small)]
        method.zero_grad()
        output = method(views, torch.Generator())
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert len(output.embeddings) == 6
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@each_method
def test_the_loss_is_float32_under_bfloat16_autocast(name):
    method = _build(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(_views(), torch.Generator())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


@each_method
def test_a_config_comes_back_from_its_dump(name):
    for config in (load_plugin("ray_sassl.methods", name).Config(), _tiny(name)):
        assert type(config)(**config.model_dump(mode="json")) == config
        assert config.name == name
