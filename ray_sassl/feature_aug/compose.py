"""Several feature augmentations in a row."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.plugins import plugin_field


class Config(FeatureAugConfig):
    """Several feature augmentations in a row.

    Attributes:
        augmentations: The parts, in the order in which they are applied; the default is only an example.
    """

    augmentations: tuple[plugin_field("ray_sassl.feature_aug", FeatureAugConfig), ...] = Field(  # type: ignore[valid-type]
        default=("mask", "noise"), min_length=1
    )

    def build(self, embedding_size: int, num_samples: int) -> Compose:
        return Compose(self, embedding_size, num_samples)

    def weakest(self) -> Config | None:
        weakest = tuple(part.weakest() for part in self.augmentations)
        return None if None in weakest else self.model_copy(update={"augmentations": weakest})

    @classmethod
    def search_ranges(cls) -> None:
        """None: to choose parts and their order is a search of its own."""


class Compose(FeatureAugmentation):
    """The first part generates K features of each sample; every further part changes each of them.

    A further part treats the k-th features of the global batch like embeddings: their spread is its unit of noise, and partners are among
    them. A part with a memory stores the original embeddings at any position, so `nearest` as the first part gives K different neighbors,
    and after another part the original embedding nearest to each augmented feature (with a `top_k`, one of the nearest, drawn for each
    feature). Gradients pass if they pass all parts.
    """

    def __init__(self, config: Config, embedding_size: int, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.num_samples = num_samples
        counts = [num_samples] + [1] * (len(config.augmentations) - 1)
        self.parts = nn.ModuleList(part.build(embedding_size, n) for part, n in zip(config.augmentations, counts, strict=True))
        self.passes_gradient = all(part.passes_gradient for part in self._parts())

    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        if not self.training:
            return repeated(embeddings, self.num_samples)
        first, *further = self._parts()
        features = first(embeddings, generator, sample_id)  # (K, B, D)
        for part in further:
            features = torch.cat([part(of_sample, generator, sample_id) for of_sample in features])
        return features

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        for part in self._parts():
            part.remember(embeddings, sample_id)

    def _parts(self) -> list[FeatureAugmentation]:
        return cast(list[FeatureAugmentation], list(self.parts))
