"""Feature augmentations: one file each. `feature_aug/mask.py` is `method.fa.augmentation=mask`.

Zhang et al. 2024 (arXiv 2410.12396): features similar to the original ones are generated in the space of the projector's embeddings.
The available texts name the kinds of augmentation but not their strengths; those are fields, and their defaults are our choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ray_sassl.plugins import PluginConfig


class FeatureAugmentation(nn.Module, ABC):
    """One feature augmentation.

    Embeddings are the projector's outputs, of any length; the losses normalize their inputs. Random draws are made for the global batch,
    each worker takes those of its own rows, and partners come from the global batch, so features do not depend on the number of workers.
    State is in the state dict and equal on all workers. Gradients of a sample's features reach only that sample's embedding: everything
    from other samples is detached.

    Attributes:
        num_samples: K, the number of augmented features per sample.
        passes_gradient: Whether gradients reach the embedding at all.
    """

    num_samples: int
    passes_gradient: bool = True

    @abstractmethod
    def forward(self, embeddings: Tensor, generator: torch.Generator, sample_id: Tensor | None = None) -> Tensor:
        """The augmented features (K, B, D) of embeddings (B, D), in their dtype; state is read and never written.

        In eval mode they are the embeddings themselves, K times, without random draws.

        Args:
            embeddings: (B, D), the rows of this worker; B is the same on all of them.
            generator: A CPU generator in the same state on every rank.
            sample_id: (B,) int64 of this worker's rows, so that a memory can leave out a sample's own entries; None if ids have no meaning.
        """

    def remember(self, embeddings: Tensor, sample_id: Tensor | None = None) -> None:
        """Called once per step, after its `forward` calls, with the original embeddings (B, D) of this worker's samples. An augmentation
        with a memory stores the rows of all workers; most do nothing."""
        del embeddings, sample_id


class FeatureAugConfig(PluginConfig, ABC):
    """The config of a feature augmentation."""

    is_identity: ClassVar[bool] = False
    """True for the one augmentation that changes nothing."""

    @abstractmethod
    def build(self, embedding_size: int, num_samples: int) -> FeatureAugmentation:
        """The augmentation for embeddings `embedding_size` wide; its initial state is drawn from torch's global generator, which the caller
        has seeded.

        Raises:
            UsageError: the augmentation cannot make `num_samples` features of a sample.
        """

    def weakest(self) -> Self | None:
        """The same augmentation at strength zero, at which every feature is bit-identical to the embedding; None if there is no such
        strength."""
        return None

    @classmethod
    def search_ranges(cls) -> dict[str, tuple[float, float]] | None:
        """The fields that a search of feature augmentations varies, each with its smallest and largest value; None excludes the
        augmentation.

        For a field that is an interval, both ends are in the range. By default these are the fields that `weakest` changes: numbers range
        from there to twice the default, or to the default if twice is not allowed, and intervals from there to the default's upper end.
        """
        default, weakest = cls(), cls().weakest()
        ranges: dict[str, tuple[float, float]] = {}
        for name in cls.model_fields if weakest is not None else ():
            least, usual = getattr(weakest, name), getattr(default, name)
            if least == usual:
                continue
            if isinstance(usual, tuple):
                ranges[name] = (least[0], usual[1])
            elif isinstance(usual, int | float):
                ranges[name] = (least, _twice(default, name))
        return ranges


def _twice(config: FeatureAugConfig, name: str) -> float:
    value = getattr(config, name)
    try:
        type(config).model_validate(config.model_dump(mode="json") | {name: 2 * value})
    except ValidationError:
        return value
    return 2 * value


def repeated(embeddings: Tensor, num_samples: int) -> Tensor:
    """(B, D) expanded to (num_samples, B, D), without a copy."""
    return embeddings.expand(num_samples, *embeddings.shape)
