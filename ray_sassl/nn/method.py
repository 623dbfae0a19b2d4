"""What the training loop knows of a method: the network that is trained, with its loss.

The loop wraps it in DistributedDataParallel and calls it like a function; its `state_dict()` holds everything that a resumed run needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ray_sassl.nn.normalize import Normalization


@dataclass(frozen=True)
class StepOutput:
    """What a method's forward pass hands back to the loop.

    Attributes:
        loss: Scalar, to be minimized.
        embeddings: (B, D), detached: the online projector's output for the first view, for the collapse metrics.
        chance_loss: The loss of a network that tells no two images apart (for InfoNCE, ln of the number of classes).
        metrics: Further detached scalars to log, by name.
    """

    loss: Tensor
    embeddings: Tensor
    chance_loss: float
    metrics: dict[str, Tensor] = field(default_factory=dict)


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
