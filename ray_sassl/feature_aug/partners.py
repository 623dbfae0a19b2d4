"""Partners: each sample's embedding is moved toward or away from that of another sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Generic, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.feature_aug.draws import ShareInterval, beta, integers, some_of
from ray_sassl.feature_aug.support import SupportSet, neighbors_per_sample, unit_vectors
from ray_sassl.nn.gather import all_gather, rank
from ray_sassl.nn.nearest import nearest_rows
from ray_sassl.nn.precision import at_least_float32
from ray_sassl.process.errors import UsageError


class PartnerConfig(FeatureAugConfig, ABC):
    """Where the partner of a sample comes from. All of this is our choice; the texts leave it open.

    Attributes:
        source: "batch" is the other samples of the global batch, "support" the embeddings of earlier ones.
        choice: "random" takes any of them, one for each augmented feature; "nearest" takes neighbors by cosine similarity.
        top_k: With "nearest", the neighbors that a sample's partners are drawn from, a different one for each augmented feature; 0 means as
            many as there are features.
        support_size: With "support", how many embeddings are kept.
        exclude_own: With "support" and "nearest", leave out a sample's own earlier embeddings. A random choice takes each of them with
            probability 1 / support_size.
    """

    source: Literal["batch", "support"] = "batch"
    choice: Literal["random", "nearest"] = "random"
    top_k: int = Field(default=0, ge=0)
    support_size: int = Field(default=16384, ge=1)
    exclude_own: bool = True

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        needs = {
            "top_k": {"choice": "nearest"},
            "support_size": {"source": "support"},
            "exclude_own": {"source": "support", "choice": "nearest"},
        }
        for name, others in needs.items():
            given = getattr(self, name)
            missing = [f"{other}={value!r}" for other, value in others.items() if getattr(self, other) != value]
            if missing and given != type(self).model_fields[name].default:
                raise ValueError(f"{name}={given} has no effect without {' and '.join(missing)}; set that too, or leave {name} out")
        return self


class LambdaConfig(PartnerConfig, ABC):
    """How far an embedding is moved along the line through its partner, drawn for each augmented feature.

    Attributes:
        lambda_range: Smallest and largest move, in units of the distance between the embedding and its partner; by default up to half, so
            that the embedding keeps the greater part (our choice).
        lambda_beta: (a, b); lambda = least + (most - least) x with x ~ Beta(a, b), which for (1, 1) is uniform.
    """

    lambda_range: ShareInterval = (0.0, 0.5)
    lambda_beta: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)

    def weakest(self) -> Self:
        return self.model_copy(update={"lambda_range": (0.0, 0.0)})

    def draw_lambda(self, num_samples: int, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        """(K, B, 1) for the embeddings (B, D), in their dtype."""
        least, most = self.lambda_range
        x = beta(num_samples, embeddings, generator, *self.lambda_beta)
        return (least + (most - least) * x)[:, :, None].to(embeddings.dtype)


class Partners(nn.Module):
    """Chooses partners, and keeps the support set if they come from one.

    A partner has the direction of the other embedding and the length of the sample's own. So a mixture of the two has the direction of the
    same mixture of unit vectors, and the support set, which keeps unit vectors, works for embeddings of any length.
    """

    def __init__(self, config: PartnerConfig, embedding_size: int, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples
        self.support = SupportSet(config.support_size, embedding_size) if config.source == "support" else None
        if config.choice == "nearest":
            self.top_k = neighbors_per_sample(config.top_k, num_samples)
            if self.support is not None:
                self.support.check_has(self.top_k)

    @torch.no_grad()
    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None) -> Tensor:
        """(K, B, D) partners of the embeddings (B, D), detached, in their dtype.

        Raises:
            UsageError: the global batch has too few other samples.
        """
        directions = unit_vectors(embeddings)
        if self.support is None:
            directions, index = self._from_batch(directions, generator, sample_id)
        else:
            directions, index = self.support.directions, self._from_support(self.support, directions, generator, sample_id)
        length = at_least_float32(embeddings).norm(dim=1, keepdim=True)  # (B, 1)
        return (directions[index] * length).to(embeddings.dtype)

    def remember(self, embeddings: Tensor, sample_id: Tensor | None) -> None:
        """As in the contract of feature augmentations."""
        if self.support is not None:
            self.support.remember(embeddings, sample_id)

    def _from_batch(self, directions: Tensor, generator: torch.Generator, sample_id: Tensor | None) -> tuple[Tensor, Tensor]:
        """The directions of the global batch (N, D), and the rows (K, B) of the partners; never the sample's own."""
        everyone = all_gather(directions)
        num_others = len(everyone) - 1
        own = torch.arange(len(directions), device=directions.device) + rank() * len(directions)
        wanted = 1 if self.config.choice == "random" else self.top_k
        if num_others < wanted:
            raise UsageError(
                f"a sample needs {wanted} others in its batch and has {num_others}; use a larger train.global_batch, or source='support'"
            )
        if self.config.choice == "random":
            return everyone, (own + integers(1, len(everyone), self.num_samples, own, generator)) % len(everyone)
        ids = own if sample_id is None else sample_id
        nearest = nearest_rows(directions, everyone, self.top_k, ids, all_gather(ids))
        return everyone, some_of(nearest, self.num_samples, generator)

    def _from_support(self, support: SupportSet, directions: Tensor, generator: torch.Generator, sample_id: Tensor | None) -> Tensor:
        if self.config.choice == "random":
            return integers(0, support.size, self.num_samples, directions, generator)
        nearest = support.nearest(directions, self.top_k, sample_id if self.config.exclude_own else None)
        return some_of(nearest, self.num_samples, generator)


C = TypeVar("C", bound=PartnerConfig)


class PartnerAugmentation(FeatureAugmentation, ABC, Generic[C]):
    """Mixes each embedding with the one of its partner; `mix` says how."""

    def __init__(self, config: C, embedding_size: int, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples
        self.partners = Partners(config, embedding_size, num_samples)

    @abstractmethod
    def mix(self, embeddings: Tensor, partners: Tensor, generator: torch.Generator) -> Tensor:
        """The features (K, B, D) of embeddings (B, D) and their partners (K, B, D), which are constants."""

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        if not self.training:
            return repeated(embeddings, self.num_samples)
        return self.mix(embeddings, self.partners(embeddings, generator, sample_id), generator)

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        self.partners.remember(embeddings, sample_id)
