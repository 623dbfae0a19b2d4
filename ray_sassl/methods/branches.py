"""Where feature augmentation and the predictor stand: Zhang et al. 2024, "Feature Augmentation for Self-supervised Contrastive Learning: A
Closer Look" (arXiv 2410.12396).

In each direction (a, b), a loss compares the trained branch's output for view a with the other branch's output for view b. Let z be the
embeddings of the trained branch, t their targets (from the same network or a momentum copy), h the predictor, A the augmentation and sg the
stop-gradient. Then one direction is

    basic                loss(A(sg z_a), t_b)     no predictor; if t takes no gradient: loss(z_a, A(t_b))
    pre_predictor        loss(h(A(z_a)), t_b)
    post_predictor       loss(A(h(z_a)), t_b)
    parallel_predictor   loss(h(z_a), A(sg t_b))

Without A these are the plain method: loss(h(z_a), t_b), or loss(z_a, t_b) without a predictor. The four are our reading of
the public texts, which define the parallel one exactly and leave the others' stop-gradients open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ray_sassl.feature_aug import FeatureAugConfig
from ray_sassl.methods import MethodConfig
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.plugins import FrozenConfig, plugin_field

Architecture = Literal["basic", "pre_predictor", "post_predictor", "parallel_predictor"]
ByView = Mapping[int, Tensor]
"""Embeddings (B, D) by the number of their view: 0 left, 1 right."""
VIEWS = {"left": (0,), "right": (1,), "both": (0, 1)}


class FaConfig(FrozenConfig):
    """Feature augmentation: how embeddings are changed, and where.

    Attributes:
        augmentation: A; `identity` switches feature augmentation off.
        architecture: The positions of A and the predictor, see the module. `auto` is `parallel_predictor`, which the paper finds best, if
            features are augmented, and else the plain method. A method without a predictor gets one if the architecture has it.
        stop_gradient: sg in `basic` and `parallel_predictor`: no gradient flows through A into the embeddings that it is given.
        num_samples: K, the number of augmented features of each embedding.
        reduction: How the K features are used. `mean`: one loss, with their mean. `free`: the sum of K losses with one feature each (the
            paper's "free loss"). They are the same for K = 1. To average features, not losses, is our choice: the mean of the losses would
            be the free loss at 1/K of the learning rate.
        symmetric: Use both directions of the loss, if the method has two; otherwise only the one from the left view to the right.
        view: The view whose embeddings are augmented, if they are on the augmented side; directions without them stay plain.
    """

    augmentation: plugin_field("ray_sassl.feature_aug", FeatureAugConfig) = "identity"  # type: ignore[valid-type]
    architecture: Literal["auto", "basic", "pre_predictor", "post_predictor", "parallel_predictor"] = "auto"
    stop_gradient: bool = True
    num_samples: int = Field(default=1, ge=1)
    reduction: Literal["mean", "free"] = "mean"
    symmetric: bool = True
    view: Literal["both", "left", "right"] = "both"

    @model_validator(mode="after")
    def _nothing_is_set_where_nothing_is_augmented(self) -> Self:
        if self.augmentation.is_identity:
            for field in ("stop_gradient", "num_samples", "reduction", "symmetric", "view"):
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(
                        f"{field}={getattr(self, field)} has no effect with augmentation='identity'; choose another augmentation"
                    )
        return self


@dataclass(frozen=True)
class Plain:
    """The properties of a method without feature augmentation that the architectures depend on.

    Attributes:
        has_predictor: The method itself has a predictor.
        needs_predictor: It collapses without one (BYOL, SimSiam): it has no negatives and no other term that keeps embeddings apart.
        trains_targets: Gradients flow into both sides of its loss (SimCLR); not if the targets come from a momentum network or are
            detached.
        is_mutual: Its loss is the same in both directions (Barlow Twins, VICReg), so one is enough. If a predictor or an augmentation makes
            the sides differ, the loss is the mean of both.
        is_symmetric: Its loss has both directions, from the left view to the right and back.
    """

    has_predictor: bool
    needs_predictor: bool
    trains_targets: bool
    is_mutual: bool = False
    is_symmetric: bool = True


class Sides(NamedTuple):
    """What the loss compares: predictions of the trained branch and their targets, by view. Unchanged tensors are passed through, not
    copied."""

    predictions: ByView
    targets: ByView


class Branches(nn.Module):
    """The feature augmentation and predictor of one method, as its architecture arranges them; memories are in the state dict.

    Attributes:
        directions: Pairs (a, b): predictions from view a are compared with targets of view b.
        has_predictor: Whether the architecture has a predictor, which the method builds.
        num_losses: Losses of one direction that are summed: K for the free loss, otherwise 1.
    """

    def __init__(self, fa: FaConfig, plain: Plain, embedding_size: int) -> None:
        super().__init__()
        self.config = fa
        self.plain = plain
        self.architecture = architecture(fa, plain)
        self.has_predictor = self.architecture != "basic"
        one_is_enough = plain.is_mutual and self.is_plain and not self.has_predictor
        self.directions = ((0, 1), (1, 0)) if plain.is_symmetric and fa.symmetric and not one_is_enough else ((0, 1),)
        self.num_losses = fa.num_samples if fa.reduction == "free" else 1
        self.augmentation = fa.augmentation.build(embedding_size, fa.num_samples)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is augmented."""
        return self.config.augmentation.is_identity

    @property
    def prediction_views(self) -> list[int]:
        """The views that predictions are made from."""
        return [a for a, _ in self.directions]

    @property
    def target_views(self) -> list[int]:
        """The views whose embeddings are targets, in order."""
        return sorted(b for _, b in self.directions)

    @property
    def num_pairs(self) -> int:
        """The length of `pairs`."""
        return len(self.directions) * self.num_losses

    def pairs(
        self, z: ByView, t: ByView, predictor: nn.Module | None, generator: torch.Generator, sample_id: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """(prediction, target), (B, D) each, of every direction and every summed loss; arguments are those of `forward`."""
        samples = self(z, t, predictor, generator, sample_id)
        return [(sides.predictions[a], sides.targets[b]) for sides in samples for a, b in self.directions]

    def forward(
        self, z: ByView, t: ByView, predictor: nn.Module | None, generator: torch.Generator, sample_id: Tensor | None
    ) -> list[Sides]:
        """Both sides of each of the `num_losses` losses, which are summed. Call it once per step: it searches the augmentation's memory,
        and then adds the embeddings of the first augmented view to it.

        Args:
            z: Embeddings of the trained branch, at least of `prediction_views`.
            t: Their targets, at least of `target_views`.
            predictor: h, (B, D) -> (B, D), or None if the architecture has none.
            generator: As a method's.
            sample_id: As a method's.
        """
        assert (predictor is not None) == self.has_predictor
        z = {view: z[view] for view in self.prediction_views}
        stop = self.config.stop_gradient

        def augment(x: ByView, *, stop_gradient: bool = False) -> list[ByView]:
            return self._augment(x, stop_gradient, generator, sample_id)

        if self.is_plain:
            return [Sides(_each(predictor, z), t)]
        match self.architecture:
            case "basic" if self.plain.trains_targets:
                return [Sides(predictions, t) for predictions in augment(z, stop_gradient=stop)]
            case "basic":
                return [Sides(z, targets) for targets in augment(t)]
            case "pre_predictor":
                return [Sides(_each(predictor, features), t) for features in augment(z)]
            case "post_predictor":
                return [Sides(predictions, t) for predictions in augment(_each(predictor, z))]
            case _:
                predictions = _each(predictor, z)
                return [Sides(predictions, targets) for targets in augment(t, stop_gradient=stop)]

    def _augment(self, x: ByView, stop_gradient: bool, generator: torch.Generator, sample_id: Tensor | None) -> list[ByView]:
        """What replaces `x` in each of the summed losses."""
        views = [view for view in VIEWS[self.config.view] if view in x]
        samples: list[dict[int, Tensor]] = [dict(x) for _ in range(self.num_losses)]
        with no_autocast(x[views[0]]):
            given = {view: at_least_float32(x[view].detach() if stop_gradient else x[view]) for view in views}
            for view in views:
                features = self.augmentation(given[view], generator, sample_id)  # (K, B, D)
                if self.config.reduction == "mean":
                    features = features.mean(0, keepdim=True)
                for sample, augmented in zip(samples, features, strict=True):
                    sample[view] = augmented
            if self.training:
                self.augmentation.remember(given[views[0]].detach(), sample_id)
        return list(samples)


def check(config: MethodConfig, fa: FaConfig, plain: Plain) -> None:
    """Refuse settings that make no sense for a method, have no effect, or cannot be built.

    Args:
        config: The method's.
        fa: Its feature augmentation.
        plain: The method without it.

    Raises:
        ValueError: names the reason and what to do.
    """
    place = architecture(fa, plain)
    if place == "basic" and plain.needs_predictor:
        raise ValueError(
            f"fa.architecture='basic' has no predictor, without which {config.name} collapses: nothing else keeps it from giving all "
            "images one embedding; use 'parallel_predictor', 'pre_predictor' or 'post_predictor'"
        )
    if place == "basic":
        for field in (name for name in type(config).model_fields if name.startswith("predictor_")):
            if getattr(config, field) != type(config).model_fields[field].default:
                raise ValueError(
                    f"{field}={getattr(config, field)} has no effect without a predictor; set fa.architecture to one that has it"
                )
    if not fa.augmentation.is_identity:
        _check_gradients(fa, place, plain)
        _check_views(fa, place, plain)


def passes_gradient(fa: FaConfig) -> bool:
    """Whether gradients flow through the augmentation; not if features come from a memory."""
    with torch.device("meta"):  # which neither draws nor allocates
        return fa.augmentation.build(1, fa.num_samples).passes_gradient


def _check_gradients(fa: FaConfig, place: Architecture, plain: Plain) -> None:
    passes = passes_gradient(fa)
    if not fa.stop_gradient:
        reason = ""
        if place in ("pre_predictor", "post_predictor"):
            reason = f"{place} has no stop-gradient"
        elif not plain.trains_targets:
            reason = "the targets of this method take no gradient anyway"
        elif not passes:
            reason = f"{fa.augmentation.name} lets no gradient through anyway"
        if reason:
            raise ValueError(f"fa.stop_gradient=false has no effect: {reason}; leave it out")
    if place == "post_predictor" and not passes:
        raise ValueError(
            f"fa.architecture='post_predictor' with {fa.augmentation.name}, which lets no gradient through, would leave the predictor "
            "untrained; use 'parallel_predictor'"
        )
    if place == "pre_predictor" and not passes and not plain.trains_targets:
        raise ValueError(
            f"fa.architecture='pre_predictor' with {fa.augmentation.name}, which lets no gradient through, would leave the encoder "
            "untrained, since the targets of this method take no gradient either; use 'parallel_predictor'"
        )


def _check_views(fa: FaConfig, place: Architecture, plain: Plain) -> None:
    if not fa.symmetric and not plain.is_symmetric:
        raise ValueError("fa.symmetric=false has no effect, since the method has one direction only; leave it out")
    augments_targets = place == "parallel_predictor" or (place == "basic" and not plain.trains_targets)
    only_view = "right" if augments_targets else "left"
    if not (plain.is_symmetric and fa.symmetric) and fa.view not in ("both", only_view):
        raise ValueError(
            f"fa.view={fa.view!r} has no effect: of a loss in one direction, {place} augments the {only_view} view; set "
            f"fa.view={only_view!r}, or take both directions"
        )


def architecture(fa: FaConfig, plain: Plain) -> Architecture:
    """The architecture, with `auto` resolved."""
    if fa.architecture != "auto":
        return fa.architecture
    return "parallel_predictor" if plain.has_predictor or not fa.augmentation.is_identity else "basic"


def _each(predictor: Callable[[Tensor], Tensor] | None, z: ByView) -> ByView:
    return z if predictor is None else {view: predictor(x) for view, x in z.items()}
