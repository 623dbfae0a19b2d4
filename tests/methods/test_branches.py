"""Feature augmentation in its places: the formulas, what is refused, and every method that takes it with every architecture."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.feature_aug import FeatureAugmentation
from ray_sassl.methods.barlow_twins import barlow_twins_loss
from ray_sassl.methods.branches import Architecture, Branches, FaConfig, Plain
from ray_sassl.methods.byol import byol_loss
from ray_sassl.methods.moco import info_nce
from ray_sassl.methods.simclr import nt_xent
from ray_sassl.methods.vicreg import vicreg_terms
from ray_sassl.nn.method import Method
from ray_sassl.plugins import load_plugin, plugin_names

ARCHITECTURES = get_args(Architecture)
METHODS = [name for name in plugin_names("ray_sassl.methods") if "fa" in load_plugin("ray_sassl.methods", name).Config.model_fields]
AUGMENTATIONS = plugin_names("ray_sassl.feature_aug")
WIDTHS = {"projector_hidden_size": 16, "embedding_size": 8, "queue_size": 13}
CONTRASTIVE = Plain(has_predictor=False, needs_predictor=False, trains_targets=True)
MOMENTUM = Plain(has_predictor=False, needs_predictor=False, trains_targets=False)

each_method = pytest.mark.parametrize("name", METHODS)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


class Shift(FeatureAugmentation):
    """Adds 1, 2, ... K in the first dimension, and keeps a record of its calls."""

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.calls: list[tuple[str, Tensor]] = []

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        self.calls.append(("forward", embeddings))
        return torch.stack([shifted(embeddings, k + 1) for k in range(self.num_samples)])

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        self.calls.append(("remember", embeddings))


def shifted(x: Tensor, by: float) -> Tensor:
    return torch.cat([x[:, :1] + by, x[:, 1:]], dim=1)


def _branches(plain: Plain, num_samples: int = 1, symmetric: bool = True, **fa: Any) -> tuple[Branches, Shift]:
    """Branches whose augmentation is `Shift`."""
    plain = replace(plain, is_symmetric=symmetric)
    branches = Branches(FaConfig(augmentation="mask", num_samples=num_samples, **fa), plain, 3)
    branches.augmentation = Shift(num_samples)
    return branches, branches.augmentation


def _embeddings(seed: int = 0) -> dict[int, Tensor]:
    z1, z2 = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {0: z1.requires_grad_(), 1: z2.requires_grad_()}


def _build(name: str, seed: int = 0, **options: Any) -> Method:
    config_class = load_plugin("ray_sassl.methods", name).Config
    widths = {key: value for key, value in WIDTHS.items() if key in config_class.model_fields}
    try:
        config = config_class(**{"predictor_hidden_size": 16} | widths | options)
    except ValidationError:  # the width is refused where there is no predictor
        config = config_class(**widths | options)
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return config.build(backbone, 6)


SIMILARITY = [name for name in METHODS if _build(name).branches.plain.needs_predictor]


def _refusal(name: str, **options: Any) -> str:
    """Why the method does not take the options; empty where it does."""
    try:
        _build(name, **options)
    except ValidationError as error:
        return str(error)
    return ""


def _views(step: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(6, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(2)]


def _train(method: Method, steps: range, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
    for step in steps:
        optimizer.zero_grad()
        method(_views(step), torch.Generator().manual_seed(step), torch.arange(6) + 3 * step).loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 10)
    return optimizer


def _assert_same_state(a: Method, b: Method) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[key], value), key


# The formulas.


@each_architecture
@pytest.mark.parametrize("plain", [CONTRASTIVE, MOMENTUM])
def test_the_pairs_are_those_of_the_formulas(architecture, plain):
    branches, _ = _branches(plain, architecture=architecture)
    h = nn.Linear(3, 3).double()
    z, t = _embeddings(), _embeddings(seed=1)
    expected = {
        "basic": lambda a, b: (shifted(z[a], 1), t[b]) if plain.trains_targets else (z[a], shifted(t[b], 1)),
        "pre_predictor": lambda a, b: (h(shifted(z[a], 1)), t[b]),
        "post_predictor": lambda a, b: (shifted(h(z[a]), 1), t[b]),
        "parallel_predictor": lambda a, b: (h(z[a]), shifted(t[b], 1)),
    }[architecture]
    pairs = branches.pairs(z, t, h if branches.has_predictor else None, torch.Generator(), None)
    for (prediction, target), (a, b) in zip(pairs, [(0, 1), (1, 0)], strict=True):
        torch.testing.assert_close((prediction, target), expected(a, b), rtol=0, atol=1e-12)


@each_architecture
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_stop_gradient_stands_before_the_augmentation_in_basic_and_parallel_only(architecture, stop_gradient):
    branches, _ = _branches(CONTRASTIVE, architecture=architecture, stop_gradient=stop_gradient)
    z, t = _embeddings(), _embeddings(seed=1)
    predictor = nn.Linear(3, 3).double() if branches.has_predictor else None
    ((prediction, target), _) = branches.pairs(z, t, predictor, torch.Generator(), None)
    assert prediction.requires_grad == (architecture != "basic" or not stop_gradient)
    assert target.requires_grad == (architecture != "parallel_predictor" or not stop_gradient)


@pytest.mark.parametrize(
    ("architecture", "view", "prediction_shifts", "target_shifts"),
    [
        ("pre_predictor", "left", [1, 0], [0, 0]),
        ("pre_predictor", "right", [0, 1], [0, 0]),
        ("parallel_predictor", "left", [0, 0], [0, 1]),
        ("parallel_predictor", "right", [0, 0], [1, 0]),
        ("parallel_predictor", "both", [0, 0], [1, 1]),
    ],
)
def test_only_the_chosen_view_is_augmented(architecture, view, prediction_shifts, target_shifts):
    branches, _ = _branches(CONTRASTIVE, architecture=architecture, view=view)
    z, t = _embeddings(), _embeddings(seed=1)
    pairs = branches.pairs(z, t, nn.Identity(), torch.Generator(), None)
    for number, (prediction, target) in enumerate(pairs):
        assert torch.equal(prediction, shifted(z[number], prediction_shifts[number]))
        assert torch.equal(target, shifted(t[1 - number], target_shifts[number]))


def test_one_direction_goes_from_the_left_view_to_the_right():
    branches, augmentation = _branches(MOMENTUM, architecture="parallel_predictor", symmetric=False)
    z, t = _embeddings(), _embeddings(seed=1)
    ((prediction, target),) = branches.pairs({0: z[0]}, {1: t[1]}, nn.Identity(), torch.Generator(), None)
    assert torch.equal(prediction, z[0])
    assert torch.equal(target, shifted(t[1], 1))
    assert [name for name, _ in augmentation.calls] == ["forward", "remember"]


def test_the_mean_takes_the_mean_of_the_features_and_the_free_loss_each_by_itself():
    z, t = _embeddings(), _embeddings(seed=1)
    for reduction, shifts in (("mean", [2]), ("free", [1, 2, 3])):
        branches, _ = _branches(CONTRASTIVE, 3, architecture="parallel_predictor", reduction=reduction)
        pairs = branches.pairs(z, t, nn.Identity(), torch.Generator(), None)
        assert len(pairs) == branches.num_pairs == 2 * len(shifts)
        for number, (prediction, target) in enumerate(pairs):
            assert torch.equal(prediction, z[number % 2])
            torch.testing.assert_close(target, shifted(t[1 - number % 2], shifts[number // 2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("view", "remembered"), [("both", 0), ("left", 0), ("right", 1)])
def test_the_memory_takes_up_one_view_after_all_searches(view, remembered):
    branches, augmentation = _branches(CONTRASTIVE, architecture="parallel_predictor", view=view)
    z, t = _embeddings(), _embeddings(seed=1)
    branches(z, t, nn.Identity(), torch.Generator(), torch.arange(5))
    names, given = zip(*augmentation.calls, strict=True)
    assert names == ("forward",) * (2 if view == "both" else 1) + ("remember",)
    assert torch.equal(given[-1], t[remembered])
    assert not given[-1].requires_grad


def test_the_memory_takes_up_nothing_in_evaluation_mode():
    branches, augmentation = _branches(CONTRASTIVE, architecture="parallel_predictor")
    branches.eval()(_embeddings(), _embeddings(seed=1), nn.Identity(), torch.Generator(), torch.arange(5))
    assert [name for name, _ in augmentation.calls] == ["forward", "forward"]


def test_features_are_augmented_in_float32_under_autocast():
    branches, augmentation = _branches(CONTRASTIVE, architecture="parallel_predictor")
    z = {view: x.detach().bfloat16() for view, x in _embeddings().items()}
    with torch.autocast("cpu", torch.bfloat16):
        branches(z, z, nn.Identity(), torch.Generator(), None)
    assert [x.dtype for _, x in augmentation.calls] == [torch.float32] * 3


# Gradients.


def _loss(architecture: str, stop_gradient: bool, z1: Tensor, z2: Tensor, h: nn.Module, frozen: list[Tensor] | None = None) -> Tensor:
    """NT-Xent of both directions; what the stop-gradient stands before is taken from `frozen` where that is given."""
    branches, augmentation = _branches(CONTRASTIVE, architecture=architecture, stop_gradient=stop_gradient)
    if frozen is not None:
        constants = iter(frozen)
        augmentation.forward = lambda embeddings, generator, sample_id=None: shifted(next(constants), 1)[None]  # type: ignore[method-assign]
    z = {0: z1, 1: z2}
    pairs = branches.pairs(z, z, h if branches.has_predictor else None, torch.Generator(), None)
    return sum((nt_xent(p, t, 0.3) for p, t in pairs), torch.zeros((), dtype=torch.float64))


def _slope(function, x: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a function of x by central differences."""
    slope = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        values = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved[place] += sign * step
            values.append(function(moved).item())
        slope[place] = (values[0] - values[1]) / (2 * step)
    return slope


@each_architecture
def test_the_gradient_without_stop_gradient_equals_finite_differences(architecture):
    torch.manual_seed(0)
    h = nn.Linear(3, 3).double()
    z = _embeddings()
    stop_gradient = architecture in ("pre_predictor", "post_predictor")  # where it has no place, and False is refused by the methods
    _loss(architecture, stop_gradient, z[0], z[1], h).backward()
    for view in (0, 1):
        slope = _slope(lambda x, view=view: _loss(architecture, stop_gradient, *(x if v == view else z[v] for v in (0, 1)), h), z[view])
        torch.testing.assert_close(z[view].grad, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("architecture", ["basic", "parallel_predictor"])
def test_the_gradient_with_stop_gradient_equals_finite_differences_with_the_augmented_embeddings_held_fast(architecture):
    torch.manual_seed(0)
    h = nn.Linear(3, 3).double()
    z = _embeddings()
    _loss(architecture, True, z[0], z[1], h).backward()
    fixed = [z[0].detach().clone(), z[1].detach().clone()]
    for view in (0, 1):
        slope = _slope(lambda x, view=view: _loss(architecture, True, *(x if v == view else z[v] for v in (0, 1)), h, fixed), z[view])
        torch.testing.assert_close(z[view].grad, slope, rtol=1e-6, atol=1e-8)


# Every method that takes feature augmentation.


@each_method
@each_architecture
def test_with_identity_an_architecture_is_the_plain_method_to_the_bit_or_the_method_with_a_predictor(name, architecture):
    has_predictor = _build(name).branches.plain.has_predictor
    if has_predictor == (architecture != "basic"):
        other = FaConfig()
    elif architecture != "basic":  # a method that has no predictor gets the same one in the same place by each of the three
        other = FaConfig(architecture="parallel_predictor")
    else:  # a method that has one is left without it, or refused
        assert _refusal(name, fa={"architecture": "basic"}) or _build(name, fa={"architecture": "basic"}).predictor is None
        return
    methods = [_build(name, fa=fa) for fa in (FaConfig(architecture=architecture), other)]
    for method in methods:
        _train(method, range(3))
    _assert_same_state(*methods)


@each_method
@each_architecture
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_accepted_config_trains_all_parameters_and_continues_bit_identically(name, architecture, augmentation):
    fa = {"augmentation": augmentation, "architecture": architecture}
    if augmentation != "identity":
        fa |= {"num_samples": 2, "reduction": "free"}
    if refusal := _refusal(name, fa=fa):
        assert "use '" in refusal
        return
    method = _build(name, fa=fa)
    output = method(_views(), torch.Generator(), torch.arange(6))
    output.loss.backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name
    method.zero_grad()

    optimizer = _train(method, range(2))
    state, optimizer_state = copy.deepcopy(method.state_dict()), copy.deepcopy(optimizer.state_dict())
    _train(method, range(2, 4), optimizer)
    resumed = _build(name, seed=1, fa=fa)
    resumed.load_state_dict(state)
    resumed_optimizer = torch.optim.SGD([p for p in resumed.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
    resumed_optimizer.load_state_dict(optimizer_state)
    _train(resumed, range(2, 4), resumed_optimizer)
    _assert_same_state(method, resumed)


@each_method
def test_the_free_loss_of_one_sample_is_the_mean_loss_to_the_bit(name):
    methods = [_build(name, fa={"augmentation": "mask", "reduction": reduction}) for reduction in ("mean", "free")]
    for method in methods:
        _train(method, range(3))
    _assert_same_state(*methods)


@each_method
def test_the_free_loss_of_samples_that_are_alike_is_their_number_times_the_loss(name):
    losses = []
    for num_samples in (1, 3):
        method = _build(name, fa={"augmentation": "mask", "num_samples": num_samples, "reduction": "free"})
        method.branches.augmentation = Shift(num_samples)
        method.branches.augmentation.forward = (  # type: ignore[method-assign]
            lambda embeddings, generator, sample_id=None, count=num_samples: shifted(embeddings, 1).expand(count, *embeddings.shape)
        )
        output = method(_views(), torch.Generator(), torch.arange(6))
        losses.append((output.loss.item(), output.chance_loss))
    (loss, chance_loss), (free_loss, free_chance_loss) = losses
    assert free_loss == pytest.approx(3 * loss, rel=1e-5)
    assert free_chance_loss == pytest.approx(3 * chance_loss)


@each_method
def test_a_loss_in_one_direction_trains_every_parameter(name):
    fa = {"augmentation": "mask", "symmetric": False}
    refusal = _refusal(name, fa=fa)
    assert "one direction only" in refusal or not refusal
    method = _build(name, fa=fa, **{"symmetric": True} if refusal else {})
    output = method(_views(), torch.Generator(), torch.arange(6))
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


# What is refused.


@each_method
@pytest.mark.parametrize(
    "option", [{"stop_gradient": False}, {"num_samples": 2}, {"reduction": "free"}, {"symmetric": False}, {"view": "left"}]
)
def test_an_option_without_an_augmentation_is_refused(name, option):
    with pytest.raises(ValidationError, match="has no effect with augmentation='identity'"):
        _build(name, fa=option)


@pytest.mark.parametrize("name", SIMILARITY)
@pytest.mark.parametrize("augmentation", ["identity", "mask"])
def test_a_similarity_objective_without_a_predictor_is_refused_since_it_collapses(name, augmentation):
    with pytest.raises(ValidationError, match=f"without which {name} collapses"):
        _build(name, fa={"augmentation": augmentation, "architecture": "basic"})


@pytest.mark.parametrize(
    ("name", "fa", "reason"),
    [
        ("simclr", {"architecture": "pre_predictor", "stop_gradient": False}, "pre_predictor has no stop-gradient"),
        ("moco", {"architecture": "basic", "stop_gradient": False}, "the targets of this method take no gradient anyway"),
        ("byol", {"stop_gradient": False}, "the targets of this method take no gradient anyway"),
        ("simclr", {"augmentation": "nearest", "stop_gradient": False}, "nearest lets no gradient through anyway"),
        ("simclr", {"augmentation": "nearest", "architecture": "post_predictor"}, "would leave the predictor untrained"),
        ("byol", {"augmentation": "nearest", "architecture": "pre_predictor"}, "would leave the encoder untrained"),
        ("moco", {"view": "left"}, "parallel_predictor augments the right view"),
        ("moco", {"architecture": "pre_predictor", "view": "right"}, "pre_predictor augments the left view"),
        ("moco", {"symmetric": False}, "the method has one direction only"),
    ],
)
def test_what_has_no_effect_or_no_gradient_is_refused_with_the_reason(name, fa, reason):
    with pytest.raises(ValidationError, match=reason):
        _build(name, fa={"augmentation": "mask"} | fa)


@pytest.mark.parametrize("augmentation", ["nearest", {"name": "compose", "augmentations": ["nearest", "noise"]}])
def test_vicreg_refuses_neighbors_since_they_have_length_one(augmentation):
    with pytest.raises(ValidationError, match="a memory of unit vectors, and VICReg compares lengths"):
        _build("vicreg", fa={"augmentation": augmentation})


@pytest.mark.parametrize("name", ["simclr", "moco", "moco_v3", "barlow_twins"])
def test_the_width_of_a_predictor_is_refused_without_a_predictor(name):
    with pytest.raises(ValidationError, match="predictor_hidden_size=5 has no effect without a predictor"):
        _build(name, fa={"architecture": "basic"}, predictor_hidden_size=5)
    method = _build(name, fa={"architecture": "parallel_predictor"}, predictor_hidden_size=5)
    assert method.predictor[0].out_features == 5


# The layouts in the objectives.


@pytest.mark.parametrize("augmentation", ["identity", "mask"])
def test_auto_is_the_plain_method_or_the_parallel_predictor(augmentation):
    method = _build("simclr", fa={"augmentation": augmentation})
    assert method.branches.architecture == ("basic" if augmentation == "identity" else "parallel_predictor")
    assert _build("byol", fa={"augmentation": augmentation}).branches.architecture == "parallel_predictor"


def test_simclr_with_a_parallel_predictor_looks_among_the_augmented_targets_of_both_views():
    method = _build("simclr", fa={"augmentation": "mask"}).double()
    method.branches.augmentation = Shift()
    views = [view.double() for view in _views()]
    output = method(views, torch.Generator())
    z1, z2 = method.projector(method.backbone(torch.cat(views))).chunk(2)
    queries = F.normalize(torch.cat([method.predictor(z) for z in (z1, z2)]), dim=1)
    candidates = F.normalize(shifted(torch.cat([z1, z2]), 1), dim=1)
    logits = (queries @ candidates.T / 0.1).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, torch.arange(12).roll(6)), rtol=0, atol=1e-9)


@each_architecture
def test_moco_augments_the_key_or_the_query_and_never_the_queue(architecture):
    method = _build("moco", fa={"augmentation": "mask", "architecture": architecture}).double()
    method.branches.augmentation = Shift()
    views = [view.double() for view in _views()]
    negatives, _ = method.queue.read()
    output = method(views, torch.Generator(), torch.arange(6))
    z, h = method.projector(method.backbone(views[0])), method.predictor
    k = F.normalize(method.key_projector(method.key_backbone(views[1])), dim=1)
    query, key = {
        "basic": lambda: (z, shifted(k, 1)),
        "pre_predictor": lambda: (h(shifted(z, 1)), k),
        "post_predictor": lambda: (shifted(h(z), 1), k),
        "parallel_predictor": lambda: (h(z), shifted(k, 1)),
    }[architecture]()
    expected = info_nce(F.normalize(query, dim=1), F.normalize(key, dim=1), negatives, 0.2)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(method.queue.embeddings[:6], k, rtol=0, atol=1e-9)


def test_moco_s_neighbor_is_not_among_its_own_negatives():
    method = _build("moco", fa={"augmentation": "mask", "architecture": "basic"})
    negatives, _ = method.queue.read()
    method.branches.augmentation.forward = lambda embeddings, generator, sample_id=None: negatives[None, :6]  # type: ignore[method-assign]
    output = method(_views(), torch.Generator(), torch.arange(6))
    q = F.normalize(method.projector(method.backbone(_views()[0])), dim=1)
    is_neighbor = torch.arange(13) == torch.arange(6)[:, None]
    torch.testing.assert_close(output.loss, info_nce(q, negatives[:6], negatives, 0.2, is_neighbor))


@pytest.mark.parametrize("architecture", [architecture for architecture in ARCHITECTURES if architecture != "basic"])
def test_byol_s_losses_are_those_of_the_formulas(architecture):
    method = _build("byol", fa={"augmentation": "mask", "architecture": architecture}).double()
    method.branches.augmentation = Shift()
    views = [view.double() for view in _views()]
    output = method(views, torch.Generator())
    z = [method.projector(method.backbone(view)) for view in views]
    t = [method.target_projector(method.target_backbone(view)) for view in views]
    h = method.predictor
    direction = {
        "pre_predictor": lambda a, b: byol_loss(h(shifted(z[a], 1)), t[b]),
        "post_predictor": lambda a, b: byol_loss(shifted(h(z[a]), 1), t[b]),
        "parallel_predictor": lambda a, b: byol_loss(h(z[a]), shifted(t[b], 1)),
    }[architecture]
    torch.testing.assert_close(output.loss, direction(0, 1) + direction(1, 0), rtol=0, atol=1e-9)


MUTUAL = {
    "barlow_twins": lambda p, t: barlow_twins_loss(p, t, 0.0051),
    "vicreg": lambda p, t: sum(weight * term for weight, term in zip((25, 25, 1), vicreg_terms(p, t), strict=True)),
}


@pytest.mark.parametrize("name", MUTUAL)
@each_architecture
def test_a_symmetric_loss_is_the_mean_of_both_directions_if_the_sides_differ(name, architecture):
    method = _build(name, fa={"augmentation": "mask", "architecture": architecture}).double()
    method.branches.augmentation = scaled = Shift()
    scaled.forward = lambda embeddings, generator, sample_id=None: (embeddings * embeddings.abs())[None]  # type: ignore[method-assign]
    views = [view.double() for view in _views()]
    output = method(views, torch.Generator())
    z, h, loss = [method.projector(method.backbone(view)) for view in views], method.predictor, MUTUAL[name]
    direction = {
        "basic": lambda a, b: loss(z[a] * z[a].abs(), z[b]),
        "pre_predictor": lambda a, b: loss(h(z[a] * z[a].abs()), z[b]),
        "post_predictor": lambda a, b: loss(h(z[a]) * h(z[a]).abs(), z[b]),
        "parallel_predictor": lambda a, b: loss(h(z[a]), z[b] * z[b].abs()),
    }[architecture]
    torch.testing.assert_close(output.loss, (direction(0, 1) + direction(1, 0)) / 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MUTUAL)
def test_a_symmetric_loss_is_computed_once_if_the_sides_are_alike(name):
    assert _build(name).branches.directions == ((0, 1),)
    assert _build(name, fa={"architecture": "parallel_predictor"}).branches.directions == ((0, 1), (1, 0))
