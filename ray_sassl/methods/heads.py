"""What most methods share: the fields, checks and networks of the projector, the predictor and feature augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from ray_sassl.methods import MethodConfig
from ray_sassl.methods.branches import Branches, FaConfig, Plain, architecture, check
from ray_sassl.nn.heads import mlp_head

Count = Annotated[int, Field(ge=1)]
"""A width, or a number of layers."""


class ProjectorConfig(MethodConfig, ABC):
    """A method with a projector. Each method sets the defaults of its own paper, and cites their sections.

    Attributes:
        projector_hidden_size: Width of the projector's hidden layers.
        embedding_size: Width of the embeddings, and of the predictions if there are any.
        projector_layers: Linear layers of the projector.
        bn: "sync" normalizes over the batches of all workers (as most official codes), "plain" over each worker's own.
    """

    projector_hidden_size: Count
    embedding_size: Count
    projector_layers: Count
    bn: Literal["sync", "plain"] = "sync"

    @property
    def has_head_bn(self) -> bool:
        """Whether there is batch normalization in the projector or the predictor."""
        return True

    def too_few_rows(self, rows: int, num_workers: int) -> str | None:
        if self.has_head_bn and self.bn == "plain" and rows < 2:
            return "with method.bn=plain each worker normalizes the outputs of its heads over its own images"
        return super().too_few_rows(rows, num_workers)

    def build_projector(self, num_features: int, **form: bool) -> nn.Sequential:
        """The projector for features of this width; `form` is passed on to `mlp_head`."""
        return mlp_head(num_features, self.projector_hidden_size, self.embedding_size, self.projector_layers, **form)


class HeadsConfig(ProjectorConfig, ABC):
    """A method with a projector, and with a predictor if the method or feature augmentation uses one.

    Attributes:
        predictor_hidden_size: Width of the predictor's hidden layers: 4096 in BYOL, NNCLR and MoCo v3. It is also the default where an
            architecture of `fa` adds a predictor to a method without one.
        predictor_layers: Linear layers of the predictor; 2 in the same three papers.
        fa: Feature augmentation.
    """

    predictor_hidden_size: Count = 4096
    predictor_layers: Count = 2
    fa: FaConfig = FaConfig()

    @property
    @abstractmethod
    def plain(self) -> Plain:
        """The method without feature augmentation."""

    @property
    def has_predictor(self) -> bool:
        """Whether there is a predictor to build."""
        return architecture(self.fa, self.plain) != "basic"

    @model_validator(mode="after")
    def _feature_augmentation_makes_sense(self) -> Self:
        check(self, self.fa, self.plain)
        return self

    def build_branches(self) -> Branches:
        """The feature augmentation with its architecture."""
        return Branches(self.fa, self.plain, self.embedding_size)

    def build_predictor(self, **form: bool) -> nn.Sequential:
        """The predictor of a method that has one; `form` is passed on to `mlp_head`."""
        return mlp_head(self.embedding_size, self.predictor_hidden_size, self.embedding_size, self.predictor_layers, **form)
