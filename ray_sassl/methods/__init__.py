"""Objectives: one file each. `methods/moco.py` is `method=moco`.

A method is the network that is trained (backbone, projector, predictor, momentum copies, queue) and its loss; `nn/method.py` says what the
loop asks of it. This module imports no torch, as most processes that read a config need none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from ray_sassl.plugins import PluginConfig

if TYPE_CHECKING:
    from torch import nn

    from ray_sassl.nn.method import Method

Network = Literal["student", "teacher"]
"""The networks of a method that can be evaluated and exported; see `layers.py`."""
LAYER_PATTERN = r"^(backbone|projector(\.\d+)?)$"
"""`backbone`, `projector` (the embeddings), or `projector.N`, the outputs of the projector's layer N, counted from 0."""


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
