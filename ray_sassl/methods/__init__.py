"""Objectives: one file each. `methods/moco.py` is `method=moco`.

A method is the network that is trained (backbone, projector, predictor, momentum copies, queue) and its loss. The loop wraps it in
DistributedDataParallel and calls it like a function; its `state_dict()` holds everything that a resumed run needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ray_sassl.nn.normalize import Normalization
from ray_sassl.plugins import PluginConfig
from ray_sassl.types import StepOutput


class Method(nn.Module, ABC):
    """One objective.

    Attributes:
        backbone: The online encoder, (B, 3, H, W) -> (B, F), which is evaluated and exported.
        normalization: What has made the views of bytes, set by the loop; a method that sends images to other workers sends the bytes.
    """

    backbone: nn.Module
    normalization: Normalization | None = None

    @abstractmethod
    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        """The loss of one batch.

        Args:
            views: (B, 3, H, W) float tensors, normalized, channels_last: two, followed by the local crops of multi-crop if the config takes
                them.
            generator: A CPU generator in the same state on every rank, seeded from the run's seed and the step.
            sample_id: (B,) int64, so that a memory of earlier batches can leave out a sample's own entries; None if ids have no meaning.
        """

    def after_step(self, progress: float) -> None:
        """Called after every optimizer update, with the share of the run that is done, in [0, 1]; momentum encoders are updated here."""

    def frozen_parameters(self, progress: float) -> list[nn.Parameter]:
        """The parameters that are not updated when a share `progress` of the run is done; none for most methods.

        Their gradients are dropped before the optimizer's step, so that it neither decays them nor counts the step: the second moments of
        AdamW begin with the first gradient that is used.
        """
        return []

    def student(self) -> tuple[nn.Module, nn.Module | None]:
        """The trained encoder and its projector, a sequence of layers, if the method has one."""
        return self.backbone, getattr(self, "projector", None)

    def teacher(self) -> tuple[nn.Module, nn.Module] | None:
        """The momentum copies of the encoder and its projector; None for methods without them."""
        return None

    def constant_lr_parameters(self) -> list[nn.Parameter]:
        """The parameters whose learning rate is always at its peak, without warm-up or decay; none for most methods."""
        return []


class MethodConfig(PluginConfig, ABC):
    """The config of a method.

    Attributes:
        takes_small_views: Whether the method is defined for more than two views (multi-crop: two large ones and any number of small ones).
        paper_views: The function of `views/recipes.py` that makes the views of the method's paper.
    """

    takes_small_views: ClassVar[bool] = False
    paper_views: ClassVar[str] = "simclr"

    @classmethod
    def tiny(cls) -> Self:
        """The config with no width, queue or number of clusters above 8."""
        return cls().reduced(8)

    @property
    def num_targets(self) -> int:
        """Width of the features of a frozen teacher that the stream brings with each image, as the fourth argument of `forward`; 0 for
        most methods, which have none."""
        return 0

    def check_workers(self, num_workers: int) -> None:
        """Called before a run, with its smallest possible number of workers.

        Raises:
            UsageError: the method cannot work with so few.
        """

    def too_few_rows(self, rows: int, num_workers: int) -> str | None:
        """Why nothing would be learned from parts of a batch of so many images on each of so many workers, or None where they suffice.

        Where other images of the batch are the negatives, or its statistics make the loss, one image alone has nothing to differ from.
        """
        return "the loss compares the images of a batch with each other" if rows * num_workers < 2 else None

    @abstractmethod
    def build(self, backbone: nn.Module, num_features: int) -> Method:
        """The method around a backbone whose features are `num_features` wide; weights are drawn from torch's global generator,
        which the caller has seeded."""
