import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ray_sassl.nn.method import Method
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.train.config import OptimConfig
from ray_sassl.train.optim import build_optimizer, clip_gradients, parameter_groups, set_rates

LR, DECAY = 0.1, 0.01


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network


def _step(network: nn.Module, config: OptimConfig) -> dict[str, torch.Tensor]:
    """Every parameter's change in the first update, whose gradient is 1 everywhere."""
    optimizer = build_optimizer(network, config)
    for group in optimizer.param_groups:
        group["lr"] = LR
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in network.named_parameters()}


def test_biases_and_the_scales_and_shifts_of_norms_are_not_decayed(network):
    decayed, free = parameter_groups(network, DECAY)
    assert decayed["weight_decay"] == DECAY
    assert free["weight_decay"] == 0
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert {id(p) for p in free["params"]} == {
        id(network[0].bias),
        id(network[3].bias),
        *map(id, network[1].parameters()),
        *map(id, network[4].parameters()),
    }


def test_parameters_that_are_not_trained_are_left_out(network):
    network[3].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(network, DECAY)) == 6


class _WithPredictor(Method):
    """A method whose predictor keeps its learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.predictor = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, views, generator, sample_id=None):
        raise NotImplementedError

    def constant_lr_parameters(self) -> list[nn.Parameter]:
        return list(self.predictor.parameters())


def test_parameters_of_constant_learning_rate_have_groups_of_their_own():
    method = _WithPredictor()
    groups = parameter_groups(method, DECAY)
    assert [(group["weight_decay"], group.get("constant_lr", False)) for group in groups] == [
        (DECAY, False),
        (0, False),
        (DECAY, True),
        (0, True),
    ]
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(p)] for p in method.parameters()]


def test_blocks_of_the_encoder_are_trained_at_their_share_of_the_rate():
    method = _WithPredictor()
    method.backbone = nn.ModuleDict(
        {"conv1": nn.Linear(3, 4), "layer1": nn.Linear(4, 4), "layer2": nn.Linear(4, 4), "norm": nn.Linear(4, 4)}
    )
    groups = build_optimizer(method, OptimConfig(layer_decay=0.5)).param_groups
    expected = [("norm", 1.0, False), ("layer2", 0.5, False), ("layer1", 0.25, False), ("conv1", 0.125, False), ("predictor", 1.0, True)]
    assert [(group.get("lr_scale", 1.0), group.get("constant_lr", False)) for group in groups[::2]] == [part[1:] for part in expected]
    for (name, *_), decayed, free in zip(expected, groups[::2], groups[1::2], strict=True):
        part = method.predictor if name == "predictor" else method.backbone[name]
        assert [id(p) for p in (*decayed["params"], *free["params"])] == [id(part.weight), id(part.bias)]


def test_a_run_trains_the_first_blocks_at_their_share_of_the_rate(tiny_config, run_here, tmp_path):
    run_here(tiny_config("simclr", "optim.layer_decay=0.5", "train.epochs=0.5"), str(tmp_path))
    checkpoint = latest_checkpoint(str(tmp_path))
    assert checkpoint is not None
    rates = [group["lr"] for group in checkpoint.state["optimizer"]["param_groups"]][::2]
    assert rates == pytest.approx([rates[0] * 0.5**depth for depth in range(len(rates))])
    assert len(rates) > 4


def test_lars_adapts_the_kernels_of_every_group():
    optimizer = build_optimizer(_WithPredictor(), OptimConfig(name="lars"))
    assert [group["always_adapt"] for group in optimizer.param_groups] == [True, False, True, False]


def test_sgd_decays_kernels_only(network):
    kernel = network[0].weight.detach().clone()
    change = _step(network, OptimConfig(name="sgd", weight_decay=DECAY))
    torch.testing.assert_close(change["0.weight"], -LR * (1 + DECAY * kernel))
    for name in ("0.bias", "1.weight", "1.bias", "4.weight"):
        torch.testing.assert_close(change[name], torch.full_like(change[name], -LR))


def test_adamw_decays_kernels_only(network):
    kernel = network[3].weight.detach().clone()
    change = _step(network, OptimConfig(name="adamw", weight_decay=DECAY))
    torch.testing.assert_close(change["3.weight"], -LR * (1 + DECAY * kernel), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(change["4.bias"], torch.full_like(change["4.bias"], -LR), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("decay", [DECAY, 0.0])
def test_lars_adapts_kernels_by_the_trust_ratio_and_nothing_else(network, decay):
    kernel = network[0].weight.detach().clone()
    change = _step(network, OptimConfig(name="lars", weight_decay=decay, trust_coefficient=0.02))
    gradient = torch.ones_like(kernel)
    # You et al. 2017, algorithm 1: the local rate is eta |w| / (|g| + decay |w|).
    ratio = 0.02 * kernel.norm() / (gradient.norm() + decay * kernel.norm())
    torch.testing.assert_close(change["0.weight"], -LR * ratio * (gradient + decay * kernel), rtol=1e-6, atol=1e-9)
    for name in ("0.bias", "1.weight", "1.bias", "4.weight"):
        torch.testing.assert_close(change[name], torch.full_like(change[name], -LR))


def test_lars_accumulates_momentum(network):
    optimizer = build_optimizer(network, OptimConfig(name="lars", momentum=0.5))
    for group in optimizer.param_groups:
        group["lr"] = LR
    bias = network[0].bias.detach().clone()
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(network[0].bias.detach(), bias - LR * (1 + 1.5))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_all_parameters_at_once_are_updated_as_one_after_the_other(network, name):
    changes = []
    for foreach in (False, True):
        torch.manual_seed(0)
        changes.append(_step(copy.deepcopy(network), OptimConfig(name=name, foreach=foreach)))
        optimizer = build_optimizer(network, OptimConfig(name=name, foreach=foreach))
        assert {group["foreach"] for group in optimizer.param_groups} == {foreach}
    for key, change in changes[0].items():
        torch.testing.assert_close(changes[1][key], change, rtol=1e-12, atol=1e-14)


def test_adamw_takes_its_betas_from_the_config(network):
    optimizer = build_optimizer(network, OptimConfig(name="adamw", momentum=0.8, beta2=0.0))
    assert optimizer.defaults["betas"] == (0.8, 0.0)
    assert build_optimizer(network, OptimConfig(name="adamw")).defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("name", "option", "owner"), [("sgd", "beta2", "adamw"), ("lars", "beta2", "adamw"), ("adamw", "trust_coefficient", "lars")]
)
def test_an_option_of_another_optimizer_is_refused(name, option, owner):
    with pytest.raises(ValidationError, match=rf"optim\.{option} has no effect on {name}; it belongs to {owner}"):
        OptimConfig.model_validate({"name": name, option: 0.5})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_all_parameters_are_decayed_if_asked_to(network, name):
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    change = _step(network, OptimConfig(name=name, weight_decay=DECAY, decay="all"))
    for key, parameter in before.items():
        torch.testing.assert_close(change[key], -LR * (1 + DECAY * parameter), rtol=1e-6, atol=1e-6)


def test_lars_adapts_all_parameters_if_all_are_decayed(network):
    scale = network[1].weight.detach().clone()
    change = _step(network, OptimConfig(name="lars", weight_decay=DECAY, decay="all", trust_coefficient=0.02))
    gradient = torch.ones_like(scale)
    ratio = 0.02 * scale.norm() / (gradient.norm() + DECAY * scale.norm())
    torch.testing.assert_close(change["1.weight"], -LR * ratio * (gradient + DECAY * scale), rtol=1e-6, atol=1e-9)


def test_biases_have_a_rate_of_their_own_that_follows_the_same_schedule(network):
    config = OptimConfig(name="lars", base_lr=0.2, bias_lr=0.0048, final_lr=0.002, lr_scaling="none")
    optimizer = build_optimizer(network, config)
    for step in (0, 7, 9):
        lr = set_rates(optimizer, config, step, total_steps=10, global_batch=4, num_rows=40)
        kernels, biases = optimizer.param_groups
        assert kernels["lr"] == lr
        assert biases["lr"] == pytest.approx(lr * 0.0048 / 0.2)


def test_the_decay_moves_along_a_half_cosine_where_there_is_any(network):
    config = OptimConfig(name="adamw", weight_decay=0.04, final_weight_decay=0.4)
    optimizer = build_optimizer(network, config)
    found = []
    for step in (0, 5, 10):
        set_rates(optimizer, config, step, total_steps=10, global_batch=4, num_rows=40)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert [decayed for decayed, _ in found] == pytest.approx([0.04, 0.22, 0.4])
    assert [free for _, free in found] == [0, 0, 0]


def test_a_rate_that_changes_with_the_epoch_is_the_cosine_of_whole_epochs(network):
    config = OptimConfig(base_lr=2.0, lr_scaling="none", lr_changes="epoch")
    optimizer = build_optimizer(network, config)
    rates = [set_rates(optimizer, config, step, total_steps=12, global_batch=10, num_rows=40) for step in range(12)]
    assert rates == pytest.approx([1 + math.cos(math.pi * epoch / 3) for epoch in (0, 1, 2) for _ in range(4)])


def test_gradients_are_clipped_together_or_each_by_itself(network):
    def norms() -> list[float]:
        return [parameter.grad.norm().item() for parameter in network.parameters() if parameter.grad is not None]

    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    clip_gradients(parameters, 0.5, "parameter")
    assert norms() == pytest.approx([0.5] * len(parameters), rel=1e-4)
    clip_gradients(parameters, 0.5, "whole")
    assert math.hypot(*norms()) == pytest.approx(0.5, rel=1e-4)


def test_the_start_of_a_warmup_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match=r"optim\.warmup_start_lr has no effect without a warm-up"):
        OptimConfig(warmup_start_lr=0.3)
